"""`pretext.byol`, small; the representative of tasks with views of several sizes."""

from methods.method import TEXTURE_VIEW, Lesson, Method


def tells_images_apart(metrics: dict[str, float]) -> bool:
    """Predictions agree with the teacher about their own image more than embeddings of different images agree.

    The mean cosine between embeddings of different images is 1 - spread^2. After a collapse both are 1.
    """
    return metrics["train/cosine"] > 1 - metrics["train/embedding_spread"] ** 2 + 0.1


METHODS = {
    "BYOL": Method(
        {
            "views": {
                "large": {"count": 2, "size": 24},
                "small": {"count": 1, "size": 16, "preset": "small_crop"},
            },
            "projector_widths": [16, 8],
            "predictor_width": 16,
        },
        Lesson(
            {
                # without colour, which is the easiest thing to agree on
                "view": {**TEXTURE_VIEW, "size": 24, "grayscale": 1.0, "contrast": 0.4},
                "projector_widths": [256, 128],
                "predictor_width": 256,
                "momentum": {"value": 0.9, "end": 1.0},
            },
            tells_images_apart,
            better=0.06,
            steps=200,
            batch_size=64,
            lr=4e-3,
            weight_decay=0.0,
        ),
        rounding_grows=True,
    )
}
