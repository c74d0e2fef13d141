"""`downstream.classification`, small."""

from methods.method import Method

METHODS = {
    "Classification": Method({"head": "mlp", "hidden": 8, "dropout": 0.2}),
    "MultiplicativeClassification": Method(
        {"head": "mlp", "hidden": 8, "covariates": "multiplicative", "covariate_rank": 2},
        task="Classification",
        data={"covariates": ["size", "left"]},
    ),
}
