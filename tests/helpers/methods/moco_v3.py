"""`pretext.moco_v3`, small."""

from methods.method import TEXTURE_VIEW, Lesson, Method

METHODS = {
    "MoCoV3": Method(
        {"view": {"size": 24}, "projector_widths": [16, 8], "predictor_width": 16, "momentum": 0.9},
        Lesson(
            {
                "view": TEXTURE_VIEW,
                "projector_widths": [256, 64],
                "predictor_width": 256,
                "momentum": {"value": 0.9, "end": 1.0},
            },
            # one of 64: chance is 1.6 percent, and the loss of chance 0.4 * ln 64 = 1.66
            lambda metrics: metrics["train/key_top1"] > 0.05 and metrics["train/loss"] < 1.5,
            better=0.15,
            steps=140,
            batch_size=64,
            lr=4e-3,
        ),
        rounding_grows=True,
    )
}
