"""`pretext.supcon`, small."""

from methods.method import TEXTURE_VIEW, Lesson, Method

METHODS = {
    "SupCon": Method(
        {"view": {"size": 24}, "projector_widths": [16, 8]},
        Lesson(
            {"view": TEXTURE_VIEW, "projector_widths": [256, 64], "temperature": 0.1},
            # of ten classes
            lambda metrics: metrics["train/partner_top1"] > 0.4,
            better=0.2,
            steps=90,
            batch_size=64,
            lr=4e-3,
        ),
        rounding_grows=True,
    )
}
