"""`pretext.multi_task`, small: a task with a teacher and a queue, and one that has neither."""

from methods.method import TEXTURE_VIEW, Lesson, Method

METHODS = {
    "MultiTask": Method(
        {
            "tasks": {
                "moco": {
                    "class_path": "pretext.moco_v2.MoCoV2",
                    "init_args": {"view": {"size": 24, "blur": 0}, "projector_widths": [16, 8], "queue_size": 32},
                },
                "rotation": {"class_path": "pretext.rotation.Rotation", "init_args": {"view": {"size": 20, "blur": 0}}},
            },
            "weights": {"rotation": 0.5},
        },
        Lesson(
            {
                "tasks": {
                    "simclr": {
                        "class_path": "pretext.simclr.SimCLR",
                        "init_args": {"view": TEXTURE_VIEW, "temperature": 0.2},
                    },
                    "rotation": {
                        "class_path": "pretext.rotation.Rotation",
                        "init_args": {"view": TEXTURE_VIEW, "rotations": "one"},
                    },
                },
                "weights": {"rotation": 0.5},
            },
            # one of 127 others, and ln 4 = 1.386
            lambda metrics: metrics["train/simclr_pair_top1"] > 0.03 and metrics["train/rotation_loss"] < 1.34,
            better=0.2,
            steps=110,
            batch_size=64,
            lr=6e-3,
        ),
    )
}
