"""Pretrain a CNN backbone on unlabelled images, transfer it, and know whether it was worth it.

    import ssl_toolkit

    run = ssl_toolkit.pretrain("simclr", data="IMAGES", out="runs/birds")
    result = ssl_toolkit.evaluate(run, data="LABELLED")

These names are all that most programs need; `docs/python.md` shows them at work. They are imported when they are first
asked for, so that ``import ssl_toolkit`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssl_toolkit.lazy import lazy_names

if TYPE_CHECKING:
    from ssl_toolkit.api import Run, embed, evaluate, predict, pretrain, transfer
    from ssl_toolkit.evaluation.results import Evaluation
    from ssl_toolkit.modules.backbone import Backbone
    from ssl_toolkit.weights import load_backbone, save_backbone

__all__ = [
    "Backbone",
    "Evaluation",
    "Run",
    "embed",
    "evaluate",
    "load_backbone",
    "predict",
    "pretrain",
    "save_backbone",
    "transfer",
]

__getattr__ = lazy_names(
    __name__,
    {
        **dict.fromkeys(("Run", "embed", "evaluate", "predict", "pretrain", "transfer"), "api"),
        **dict.fromkeys(("load_backbone", "save_backbone"), "weights"),
        "Backbone": "modules.backbone",
        "Evaluation": "evaluation.results",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
