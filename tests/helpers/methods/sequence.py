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
    "PairHead": Method({"head": PAIR}, task="SequenceClassification", data={"max_frames": 2}),
}
