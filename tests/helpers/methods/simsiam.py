"""`pretext.simsiam`, small."""

from methods.byol import tells_images_apart
from methods.method import TEXTURE_VIEW, Lesson, Method

METHODS = {
    "SimSiam": Method(
        {"view": {"size": 24}, "projector_widths": [16, 8], "predictor_width": 4},
        Lesson(
            {
                # without colour, which is the easiest thing to agree on
                "view": {**TEXTURE_VIEW, "size": 24, "grayscale": 1.0, "contrast": 0.4},
                "projector_widths": [256, 256],
                "predictor_width": 256,
            },
            tells_images_apart,
            better=0.1,
            steps=125,
            lr=3e-3,
            weight_decay=0.0,
        ),
        rounding_grows=True,
    )
}
