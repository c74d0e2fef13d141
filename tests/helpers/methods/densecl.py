"""`pretext.densecl`, small."""

from methods.method import BACKBONE, TEXTURE_VIEW, Lesson, Method

METHODS = {
    "DenseCL": Method(
        {
            # maps of more than one pixel
            "backbone": {**BACKBONE, "stem": "small"},
            "view": {"size": 16},
            "projector_widths": [64, 32],
            "queue_size": 20,
            "momentum": 0.9,
        },
        Lesson(
            {
                # gentler: with more jitter the loss of so few steps stays at chance for two seeds of three
                "view": {**TEXTURE_VIEW, "size": 48, "brightness": 0.3, "contrast": 0.3},
                "projector_widths": [128, 64],
                "queue_size": 256,
                "momentum": 0.9,
            },
            # one of 257: the loss of chance is 5.55, of whole images as of places
            lambda metrics: metrics["train/loss"] < 5.2,
            better=0.2,
            steps=66,
            batch_size=64,
            lr=6e-3,
        ),
        rounding_grows=True,
    )
}
