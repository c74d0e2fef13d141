"""Changed settings of a resumed run: what may change, what may not, and what is said of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

# What a run has been from its first step: with another one the checkpoint would be of another run. The first pattern
# that matches a key's beginning gives the reason.
_KEPT = {
    r"seed$": "every random choice is drawn from it",
    r"model\.class_path": "the checkpoint is of its task",
    r"model\.init_args\.(backbone|init|weights|rules|freeze_backbone|tuned|layer_decay|head_lr_factor|head_weights|covariates|covariate_rank)":
    "the checkpoint is of its network, and of the parameters that it trains",
    r"model\.init_args\.unfreeze_percent": "it settles which parameters have been trained so far",
    r"model\.init_args\.\w*widths?$": "the checkpoint is of its network",
    r"model\.init_args\.optimizer\.class_path": "the checkpoint has its state",
    r"average\.kind": "the checkpoint has its average",
    r"data\.(source|labels|channels|val_fraction|test_fraction|split_seed|max_images|splits|fold|columns|targets|covariates|label_fraction|labels_per_class)$":
    "it settles which images are for training, validation and testing",
    r"data\.class_balance$": "it settles which images an epoch has",
    r"data\.range": "it settles which numbers are black and white",
    r"trainer\.(accumulate_grad_batches|limit_train_batches|overfit_batches)$": "steps and epochs are counted by it",
}  # fmt: skip
# told apart and said elsewhere, or of no weight for what is learned
_UNSAID = re.compile(r"data\.batch_size$|threads$|data\.(cache|num_threads)|trainer\.(enable_|profiler|log_every)")


def changed_settings(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings that two resolved configurations have in common, and that differ.

    Args:
        before: The run's configuration.
        now: That of the resumed run.

    Returns:
        The two values by key, such as ``model.init_args.optimizer.init_args.lr``. Below a class that has changed
        nothing is compared.
    """
    return dict(_differences(before, now, ""))


def check_kept(changed: dict[str, tuple[Any, Any]]) -> None:
    """Refuses what a resumed run may not change.

    Raises:
        ValueError: In one line.
    """
    for key, (before, now) in changed.items():
        for pattern, reason in _KEPT.items():
            if re.match(pattern, key):
                raise ValueError(
                    f"{_short(key)} is {_text(now)}, but the run was begun with {_text(before)}, and {reason}: leave "
                    "it out to go on, or begin a new run with another --out"
                )


def remarks(changed: dict[str, tuple[Any, Any]], step: int) -> Iterator[str]:
    """What is to be said of the settings that changed, each in a line.

    Args:
        changed: As `changed_settings` gives them.
        step: The step with which the run goes on.
    """
    for key, (before, now) in changed.items():
        if not _UNSAID.match(key):
            yield f"changed from step {step:,} on: {_short(key)} {_text(now)}, before {_text(before)}"


def _differences(before: Any, now: Any, key: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(before, dict) and isinstance(now, dict):
        if before.get("class_path") != now.get("class_path"):
            yield f"{key}.class_path".lstrip("."), (before.get("class_path"), now.get("class_path"))
            return
        for name in before.keys() & now.keys() if key else [each for each in now if each in before]:
            yield from _differences(before[name], now[name], f"{key}.{name}".lstrip("."))
    elif before != now:
        yield key, (before, now)


def _short(key: str) -> str:
    """The key as the command line has it."""
    return key.replace(".init_args", "").removesuffix(".class_path")


def _text(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[\w.]+\.[A-Z]\w*", value):
        return value.rpartition(".")[2]
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
