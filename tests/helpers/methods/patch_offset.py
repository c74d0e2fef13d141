"""`pretext.patch_offset`, small."""

from methods.method import BACKBONE, GRID_VIEW, Lesson, Method

METHODS = {
    "PatchOffset": Method(
        {
            "backbone": {**BACKBONE, "stem": "small"},
            "view": {"size": 36, "blur": 0},
            "patch_size": 12,
            "num_patches": 4,
            "hidden_width": 16,
        },
        Lesson(
            {
                "view": GRID_VIEW,
                "patch_size": 17,
                "colour": "none",
                "hidden_width": 128,
            },
            # chance is 0
            lambda metrics: metrics["train/variance_explained"] > 0.3,
            better=0.04,
            images="procedural",
            num=900,
            steps=125,
            lr=3e-3,
            batch_size=50,
            stem_width=16,
        ),
    )
}
