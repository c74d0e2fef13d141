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
                "view": {**TEXTURE_VIEW, "size": 48},
                "projector_widths": [128, 64],
                "queue_size": 256,
                "momentum": 0.9,
            },
            # one of 257: chance is 0.4 percent, and the loss of chance 5.55
            lambda metrics: metrics["train/key_top1"] > 0.01 and metrics["train/place_top1"] > 0.01,
            better=0.2,
            steps=230,
            batch_size=64,
            lr=6e-3,
        ),
        rounding_grows=True,
    )
}
