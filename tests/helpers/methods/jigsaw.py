"""`pretext.jigsaw`, small."""

from methods.method import BACKBONE, GRID_VIEW, Lesson, Method

METHODS = {
    "Jigsaw": Method(
        {
            "backbone": {**BACKBONE, "stem": "small"},
            "view": {"size": 36, "blur": 0},
            "patch_size": 12,
            "jitter": 0,
            "num_permutations": 5,
            "patch_width": 8,
            "hidden_width": 16,
        },
        Lesson(
            {
                "view": GRID_VIEW,
                "patch_size": 17,
                "jitter": 0,
                "colour": "none",
                "hidden_width": 128,
                "patch_width": 32,
                "num_permutations": 8,
            },
            # chance is one in eight
            lambda metrics: metrics["train/permutation_top1"] > 0.5,
            better=0.04,
            images="procedural",
            num=900,
            steps=120,
            batch_size=50,
            stem_width=16,
        ),
    )
}
