"""`downstream.sequence_labelling`, small."""

from methods.method import Method

HEAD = {
    "class_path": "downstream.sequence.MultiStageTCNHead",
    "init_args": {"channels": 8, "num_layers": 2, "num_stages": 2, "dropout": 0.1},
}

METHODS = {
    "SequenceLabelling": Method(
        {"head": HEAD, "smoothing": 0.15},
        data={"path": None, "labels": "none", "source": "procedural", "frame_labels": True, "max_images": 40,
              "max_frames": 6},
    )
}  # fmt: skip
