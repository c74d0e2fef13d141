"""`pretext.ressl`, small."""

from methods.method import GREY_VIEW, Lesson, Method

METHODS = {
    "ReSSL": Method(
        {
            "views": {
                "weak": {"count": 1, "size": 24, "preset": "crop_and_flip"},
                "strong": {"count": 1, "size": 24},
            },
            "projector_widths": [16, 8],
            "temperature": 0.5,
            "teacher_temperature": 0.2,
            "queue_size": 20,
            "momentum": 0.9,
        },
        Lesson(
            {
                # without colour, on which views do not agree at first
                "views": {
                    "weak": {**GREY_VIEW, "brightness": 0, "contrast": 0},
                    "strong": GREY_VIEW,
                },
                "projector_widths": [128, 128],
                "queue_size": 512,
                "momentum": 0.97,
            },
            # the loss of chance is ln 512 = 6.24
            lambda metrics: metrics["train/loss"] < 5.0,
            better=0.12,
            steps=200,
            batch_size=64,
            lr=6e-3,
        ),
        rounding_grows=True,
        learns_with={
            "views": {
                "weak": {**GREY_VIEW, "size": 24, "brightness": 0, "contrast": 0, "count": 1},
                "strong": {**GREY_VIEW, "size": 24, "count": 1},
            },
            "temperature": 0.1,
            "teacher_temperature": 0.04,
            "queue_size": 256,
            "momentum": 0.97,
        },
    )
}
