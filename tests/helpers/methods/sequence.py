"""`downstream.sequence`, small: a method for each of its heads."""

from methods.method import Method

RECURRENT = {"class_path": "downstream.sequence.RecurrentHead", "init_args": {"hidden": 8, "dropout": 0.2}}
TRANSFORMER = {
    "class_path": "downstream.sequence.TransformerHead",
    "init_args": {"dim": 8, "num_heads": 2, "dropout": 0.1},
}
PAIR = {"class_path": "downstream.sequence.PairHead", "init_args": {"rank": 4, "dropout": 0.1}}

METHODS = {
    "SequenceClassification": Method({"head": RECURRENT}),
    "TransformerHead": Method(
        # a key's bias adds the same to all scores of a query, so that its gradient is rounding
        {"head": TRANSFORMER},
        task="SequenceClassification",
        rounding_grows=True,
    ),
    "TemporalConvHead": Method(
        {
            "head": {
                "class_path": "downstream.sequence.TemporalConvHead",
                "init_args": {"channels": 8, "num_blocks": 2, "dropout": 0.1},
            }
        },
        task="SequenceClassification",
    ),
    "PoolingHead": Method(
        {"head": {"class_path": "downstream.sequence.PoolingHead", "init_args": {"pooling": "mean_max"}}},
        task="SequenceClassification",
    ),
    "AttentionPoolingHead": Method(
        {
            "head": {
                "class_path": "downstream.sequence.AttentionPoolingHead",
                "init_args": {"hidden": 8, "dropout": 0.1},
            }
        },
        task="SequenceClassification",
    ),
    "FrameHead": Method(
        {"head": {"class_path": "downstream.sequence.FrameHead", "init_args": {"hidden": 8, "dropout": 0.1}}},
        task="SequenceClassification",
    ),
    "MultiStageTCNHead": Method(
        {
            "head": {
                "class_path": "downstream.sequence.MultiStageTCNHead",
                "init_args": {"channels": 8, "num_layers": 2, "num_stages": 2, "dropout": 0.1},
            }
        },
        task="SequenceClassification",
    ),
    "PairHead": Method({"head": PAIR}, task="SequenceClassification", data={"max_frames": 2}),
}
