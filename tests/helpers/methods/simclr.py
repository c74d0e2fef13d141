"""`pretext.simclr`, small."""

from methods.method import TEXTURE_VIEW, Lesson, Method

METHODS = {
    "SimCLR": Method(
        {"view": {"size": 24}, "projector_widths": [16, 8]},
        Lesson(
            {"view": TEXTURE_VIEW, "temperature": 0.2},
            # the right one of 255 others: chance is 0.4 percent
            lambda metrics: metrics["train/pair_top1"] > 0.03,
            better=0.2,
            steps=90,
            lr=6e-3,
        ),
    )
}
