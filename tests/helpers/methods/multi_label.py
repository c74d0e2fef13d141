"""`downstream.multi_label`, small."""

from methods.method import Method

METHODS = {
    "MultiLabel": Method({"loss_kind": "asymmetric"}, data={"targets": ["animal", "vehicle", "left"]}),
}
