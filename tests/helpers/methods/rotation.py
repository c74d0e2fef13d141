"""`pretext.rotation`, small."""

from methods.method import Lesson, Method

METHODS = {
    "Rotation": Method(
        {"view": {"size": 24, "preset": "crop_and_flip"}},
        Lesson(
            {"view": {"size": 36, "scale": [0.6, 1.0], "ratio": [1, 1], "hflip": 0, "preset": "crop_and_flip"}},
            # chance is one in four
            lambda metrics: metrics["train/rotation_top1"] > 0.4,
            better=0.15,
            images="procedural",
            num=900,
            steps=105,
            batch_size=32,
            lr=4e-3,
            stem_width=16,
        ),
    )
}
