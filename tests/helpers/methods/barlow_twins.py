"""`pretext.barlow_twins`, small."""

from methods.method import TEXTURE_VIEW, Lesson, Method

METHODS = {
    "BarlowTwins": Method(
        {"view": {"size": 24}, "projector_widths": [16, 8]},
        Lesson(
            {"view": TEXTURE_VIEW, "projector_widths": [256, 256]},
            # by chance: no agreement, and a loss of 265
            lambda metrics: metrics["train/agreement"] > 0.4 and metrics["train/loss"] < 0.6 * 265,
            better=0.12,
            steps=120,
            batch_size=64,
            lr=4e-3,
        ),
        rounding_grows=True,
    )
}
