"""`pretext.emp_ssl`, small."""

from methods.method import TEXTURE_VIEW, Lesson, Method

METHODS = {
    "EMPSSL": Method(
        {
            "views": {"crop": {"size": 16, "count": 4, "scale": [0.25, 0.25]}},
            "projector_widths": [16, 8],
            # the paper's weight is for hundreds of dimensions
            "invariance": 3.0,
        },
        Lesson(
            {
                "views": {"crop": {**TEXTURE_VIEW, "size": 24, "count": 6, "scale": [0.25, 0.25]}},
                "projector_widths": [128, 64],
                "invariance": 40.0,
            },
            lambda metrics: metrics["train/agreement"] > 0.6 and metrics["train/coding_rate"] > 0.6,
            better=0.2,
            steps=90,
            batch_size=64,
            lr=4e-3,
        ),
        rounding_grows=True,
    )
}
