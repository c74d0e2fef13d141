"""`pretext.w_mse`, small."""

from methods.method import GREY_VIEW, TEXTURE_VIEW, Lesson, Method

METHODS = {
    "WMSE": Method(
        {"view": {"size": 24}, "projector_widths": [16, 3], "part": 4, "eps": 0.01},
        Lesson(
            {
                # without colour, on which views do not agree at first
                "view": {**TEXTURE_VIEW, "grayscale": 1.0, "contrast": 0.4},
                "projector_widths": [256, 16],
                "part": 64,
            },
            # by chance whitened views do not agree
            lambda metrics: metrics["train/cosine"] > 0.5,
            better=0.12,
            steps=180,
            batch_size=64,
            lr=6e-3,
        ),
        rounding_grows=True,
        learns_with={"view": {**GREY_VIEW, "size": 24}},
    )
}
