"""`pretext.vicreg`, small."""

from methods.method import TEXTURE_VIEW, Lesson, Method


def views_agree(metrics: dict[str, float]) -> bool:
    """Two views of an image differ by less than half of what two images do.

    The mean squared difference of images is twice the variance. After a collapse both are 0.
    """
    return metrics["train/invariance"] < (1 - metrics["train/variance"]) ** 2


METHODS = {
    "VICReg": Method(
        {"view": {"size": 24}, "projector_widths": [16, 8]},
        Lesson(
            {"view": TEXTURE_VIEW, "projector_widths": [256, 256]},
            # embeddings that are all alike have a loss of 25, those of a random network one of 22
            lambda metrics: views_agree(metrics) and metrics["train/loss"] < 20,
            better=0.15,
            steps=150,
            batch_size=64,
            lr=4e-3,
        ),
        rounding_grows=True,
    )
}
