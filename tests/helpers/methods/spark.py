"""`pretext.spark`, small."""

from methods.method import Lesson, Method

# parts of the textures in their own resolution, in which 8 pixels are a wave or two; in grey, because the easiest thing
# to predict of a patch is the colour of its neighbours
VIEW = {"size": 32, "scale": [0.44, 0.5], "ratio": [1, 1], "hflip": 0, "grayscale": 1, "preset": "crop_and_flip"}

METHODS = {
    "SparK": Method(
        {"view": {"size": 64, "preset": "crop_and_flip"}, "mask_ratio": 0.5, "decoder_width": 32},
        Lesson(
            {"view": VIEW, "mask_ratio": 0.5, "decoder_width": 32},
            # chance is 0, and noise leaves less than 1 to be had
            lambda metrics: metrics["train/variance_explained"] > 0.35,
            better=0.2,
            steps=80,
            batch_size=32,
            lr=4e-3,
            stem="small",
        ),
    )
}
