"""`pretext.patch_position`, small."""

from methods.method import BACKBONE, GRID_VIEW, Lesson, Method

METHODS = {
    "PatchPosition": Method(
        {
            "backbone": {**BACKBONE, "stem": "small"},
            "view": {"size": 36, "blur": 0},
            "patch_size": 12,
            "jitter": 0,
            "hidden_width": 16,
        },
        Lesson(
            {
                "view": GRID_VIEW,
                "patch_size": 17,
                "jitter": 0,
                "colour": "none",
                "hidden_width": 128,
            },
            # chance is one in eight
            lambda metrics: metrics["train/position_top1"] > 0.2,
            better=0.08,
            images="procedural",
            num=900,
            steps=105,
            batch_size=50,
            stem_width=16,
        ),
    )
}
