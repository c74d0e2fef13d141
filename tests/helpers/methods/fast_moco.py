"""`pretext.fast_moco`, small."""

from methods.method import TEXTURE_VIEW, Lesson, Method

METHODS = {
    "FastMoCo": Method(
        {
            "view": {"size": 32},
            "projector_widths": [64, 32],
            "predictor_width": 64,
            "temperature": 0.5,
            "momentum": 0.9,
        },
        Lesson(
            {
                "view": TEXTURE_VIEW,
                "projector_widths": [128, 64],
                "predictor_width": 128,
                "momentum": 0.9,
            },
            # one of 64: chance is 1.6 percent, and the loss of chance 4.16
            lambda metrics: metrics["train/key_top1"] > 0.05 and metrics["train/loss"] < 3.7,
            better=0.2,
            steps=110,
            batch_size=64,
            lr=6e-3,
        ),
    )
}
