"""`pretext.dino`, small."""

from methods.method import GREY_VIEW, TEXTURE_VIEW, Lesson, Method

METHODS = {
    "DINO": Method(
        {
            "views": {
                "large": {"count": 2, "size": 24},
                "small": {"count": 1, "size": 16, "preset": "small_crop"},
            },
            "projector_widths": [16, 8],
            "temperature": 0.5,
            "teacher_temperature": 0.2,
            "num_prototypes": 6,
            "momentum": 0.9,
            "frozen_until": 0.2,
            "export": "student",
        },
        Lesson(
            {
                # without colour, on which views do not agree at first: an even teacher is all that they then agree on
                "view": {**TEXTURE_VIEW, "grayscale": 1.0, "contrast": 0.4},
                "projector_widths": [256, 128],
                "num_prototypes": 256,
                "teacher_temperature": 0.02,
                "centre_momentum": 0.8,
                "momentum": 0.99,
            },
            # the loss of chance is ln 256 = 5.55
            lambda metrics: metrics["train/loss"] < 3.5,
            better=0.1,
            steps=130,
            batch_size=64,
            lr=6e-3,
        ),
        rounding_grows=True,
        learns_with={
            "views": {
                "large": {**GREY_VIEW, "size": 24, "count": 2},
                "small": {**GREY_VIEW, "size": 16, "count": 1},
            },
            "num_prototypes": 64,
            "temperature": 0.1,
            "teacher_temperature": 0.02,
            "centre_momentum": 0.8,
            "momentum": 0.99,
        },
    )
}
