"""`downstream.classification`, small."""

from methods.method import Method

METHODS = {"Classification": Method({"head": "mlp", "hidden": 8, "dropout": 0.2})}
