"""`pretext.swav`, small."""

from methods.method import GREY_VIEW, TEXTURE_VIEW, Lesson, Method

METHODS = {
    "SwAV": Method(
        {
            "views": {
                "large": {"count": 2, "size": 24},
                "small": {"count": 1, "size": 16, "preset": "small_crop"},
            },
            "projector_widths": [16, 8],
            "temperature": 0.5,
            "epsilon": 0.2,
            "num_prototypes": 6,
            "queue_size": 20,
            "queue_after": 0.3,
            "frozen_until": 0.2,
        },
        Lesson(
            {
                # without colour, on which views do not agree at first: even assignments are all that they then agree on
                "view": {**TEXTURE_VIEW, "grayscale": 1.0, "contrast": 0.4},
                "projector_widths": [256, 64],
                "num_prototypes": 64,
                "epsilon": 0.02,
                "queue_size": 256,
                "queue_after": 0.3,
            },
            # one of 64: chance is 1.6 percent, and the loss of chance ln 64 = 4.16
            lambda metrics: metrics["train/prototype_top1"] > 0.1 and metrics["train/loss"] < 3.6,
            better=0.15,
            steps=180,
            batch_size=64,
            lr=4e-3,
        ),
        rounding_grows=True,
        learns_with={
            "views": {
                "large": {**GREY_VIEW, "size": 24, "count": 2},
                "small": {**GREY_VIEW, "size": 16, "count": 1},
            },
            "num_prototypes": 32,
            "temperature": 0.1,
            "epsilon": 0.02,
            "queue_size": 128,
        },
    )
}
