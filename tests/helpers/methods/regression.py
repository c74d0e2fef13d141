"""`downstream.regression`, small."""

from methods.method import Method

METHODS = {
    "Regression": Method({"head": "mlp", "hidden": 8, "dropout": 0.2}, data={"targets": ["x", "angle"]}),
}
