"""`pretext.moco_v2`, small."""

from methods.method import TEXTURE_VIEW, Lesson, Method

METHODS = {
    "MoCoV2": Method(
        {"view": {"size": 24}, "projector_widths": [16, 8], "queue_size": 20, "momentum": 0.9},
        Lesson(
            {
                "view": TEXTURE_VIEW,
                "projector_widths": [128, 64],
                "queue_size": 256,
                "momentum": 0.9,
                "symmetric": True,
            },
            # one of 257: chance is 0.4 percent, and the loss of chance 5.55
            lambda metrics: metrics["train/key_top1"] > 0.01 and metrics["train/loss"] < 5.2,
            better=0.2,
            steps=140,
            batch_size=64,
            lr=6e-3,
        ),
        rounding_grows=True,
    )
}
