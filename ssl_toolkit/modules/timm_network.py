"""Networks of timm: which are convolutional, and how one is made from a configuration."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import timm
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import get_session
from timm.models import is_model_in_modules, is_model_pretrained
from torch import nn

from ssl_toolkit.errors import nearest
from ssl_toolkit.modules import resnet9, textbook

# The families that this project adds to timm's registry; plain timm does not know them.
OWN_FAMILIES = tuple(module.__name__.rpartition(".")[2] for module in (resnet9, textbook))

# The families (modules of timm.models) of convolutional networks; a few of their members add a block of attention.
# The others are built on attention or token mixing, or take images of one size only.
# fmt: off
CNN_FAMILIES = (
    "byobnet", "convmixer", "convnext", "cspnet", "cspnext", "densenet", "dla", "dpn", "efficientnet", "fasternet",
    "ghostnet", "hardcorenas", "hgnet", "hrnet", "inception_next", "inception_resnet_v2", "inception_v3",
    "inception_v4", "lcnetv2", "mambaout", "mobilenetv3", "nasnet", "nfnet", "pnasnet", "rdnet", "regnet", "repghost",
    "repvit", "res2net", "resnest", "resnet", "resnetv2", "rexnet", "selecsls", "senet", "sknet", "starnet", "tresnet",
    "vgg", "vovnet", "xception", "xception_aligned",
    *OWN_FAMILIES,
)
# fmt: on

# Seconds in which the hub has to answer.
_TIMEOUT = 10.0

# Arguments of timm.create_model that the backbone sets itself, or that would read other files.
_RESERVED_KWARGS = {
    "in_chans": "use in_channels",
    "pretrained": "use pretrained",
    "num_classes": "a backbone has no classifier",
    "global_pool": "the features are averaged over the image",
    "features_only": "use feature_maps()",
    "checkpoint_path": "use load_backbone()",
    "pretrained_cfg": "name the weights in name, as in resnet18.a1_in1k",
    "pretrained_cfg_overlay": "name the weights in name, as in resnet18.a1_in1k",
}


def check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(name):
        names = [known for family in CNN_FAMILIES for known in timm.list_models(module=family)]
        raise ValueError(f"timm knows no network {architecture!r}{nearest(architecture, names)}")
    if not is_model_in_modules(name, CNN_FAMILIES):
        raise ValueError(
            f"{architecture!r} is not a convolutional network; a backbone is one of timm's CNNs, "
            "such as resnet18, convnext_tiny or efficientnet_b0"
        )
    tags = [known.partition(".")[2] for known in timm.list_models(f"{architecture}.*", pretrained=True)]
    if tag and tag not in tags:
        raise ValueError(
            f"timm has no weights {tag!r} for {architecture!r}, only {', '.join(tags)}{nearest(tag, tags)}"
        )


def plain_kwargs(kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """A deep copy of the arguments as JSON holds them, because a weights file must be able to."""
    for key in kwargs or {}:
        if key in _RESERVED_KWARGS:
            raise ValueError(f"the backbone's kwargs may not hold {key!r}: {_RESERVED_KWARGS[key]}")
    try:
        return json.loads(json.dumps(kwargs or {}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the backbone's kwargs must be numbers, strings, lists and dicts, got {kwargs}") from error


def create_model(name: str, pretrained: bool, in_channels: int, kwargs: dict[str, Any]) -> nn.Module:
    """A network of timm without its classifier.

    Raises:
        ValueError: It cannot be built, or its weights cannot be had.
    """
    failure = None
    if pretrained and not is_model_pretrained(name):
        raise ValueError(f"timm has no pretrained weights of {name!r}; set pretrained to false")
    try:
        with contextlib.ExitStack() as stack:
            failure = stack.enter_context(_hub_asked_once()) if pretrained else None
            return timm.create_model(name, pretrained=pretrained, num_classes=0, in_chans=in_channels, **kwargs)
    # Any exception: a download fails in as many ways as there are libraries under timm and the hub's client, and a
    # wrong value in kwargs fails wherever the network trips over it.
    except Exception as error:
        reason = f"{type(error).__name__}: {_first_line(error)}"
        if pretrained:
            if failure is not None and isinstance(error, LocalEntryNotFoundError):
                reason = f"the hub does not answer: {type(failure).__name__}: {_first_line(failure)}"
            raise ValueError(
                f"could not get the pretrained weights of {name!r} ({reason}); "
                "check the network connection, or set pretrained to false"
            ) from error
        raise ValueError(
            f"could not build {name!r} with in_channels={in_channels}, kwargs={kwargs} ({reason})"
        ) from error


@contextlib.contextmanager
def _hub_asked_once() -> Iterator[Exception | None]:
    """Has the hub's client use its cache alone where the hub does not answer, instead of five retries for each file.

    Yields:
        Why the hub does not answer; None if it does.
    """
    before, failure = constants.HF_HUB_OFFLINE, None
    if not before:
        try:
            get_session().head(constants.ENDPOINT, timeout=_TIMEOUT)
        except Exception as error:  # of whatever library the client uses
            failure = error
    constants.HF_HUB_OFFLINE = before or failure is not None
    try:
        yield failure
    finally:
        constants.HF_HUB_OFFLINE = before


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
