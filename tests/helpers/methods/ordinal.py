"""`downstream.ordinal`, small."""

from methods.method import Method

METHODS = {"OrdinalClassification": Method({"head": "mlp", "hidden": 8})}
