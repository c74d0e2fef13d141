"""Networks of a comparison: those of the weights files, and one with random weights for each architecture."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssl_toolkit.evaluation.random_weights import random_backbone
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.weights import load_backbone, read_header
from ssl_toolkit.weights.trained_size import trained_size

DEFAULT_SIZE = 224


class Network(NamedTuple):
    """A backbone on the CPU, what it is called, and the size and header with which it looks at images."""

    name: str
    backbone: Backbone
    size: int
    header: Mapping[str, Any]
    is_random: bool


def open_networks(
    weights: Sequence[str | Path], image_size: int | None, random_weights: bool, seed: int
) -> list[Network]:
    """Those of the files, then the random ones: one for each architecture and size."""
    given = []
    for number, file in enumerate(weights):
        header = read_header(file)
        size = image_size or trained_size(header) or DEFAULT_SIZE
        letter = chr(ord("A") + number) if number < 26 else f"W{number}"
        given.append(Network(letter, load_backbone(file), size, header, False))
        given[-1].backbone.check_size(size)
    kinds: dict[str, Network] = {}
    for network in given if random_weights else ():
        kinds.setdefault(_kind(network), network)
    random = [
        Network(
            "random" if len(kinds) == 1 else f"random {network.name}",
            random_backbone(network.backbone, seed), network.size, network.header, True,
        )
        for network in kinds.values()
    ]  # fmt: skip
    return [*given, *random]


def _kind(network: Network) -> str:
    """What decides which random weights a network is compared with."""
    config = {name: each for name, each in network.backbone.config().items() if name != "pretrained"}
    return json.dumps([config, network.size], sort_keys=True, default=str)


def pairs(networks: Sequence[Network]) -> list[tuple[str, str]]:
    """Who is tested against whom: each file with each other one, and with the random weights of its architecture."""
    given = [each for each in networks if not each.is_random]
    pairs = [(first.name, second.name) for first, second in itertools.combinations(given, 2)]
    random = {_kind(each): each.name for each in networks if each.is_random}
    return [*pairs, *((each.name, random[_kind(each)]) for each in given if random)]


def size_remarks(networks: Sequence[Network], image_size: int | None) -> list[str]:
    """What is to be said of sizes at which networks look at images."""
    remarks, sizes = [], {each.size for each in networks}
    if len(sizes) > 1:
        shown = ", ".join(f"{each.name} {each.size} px" for each in networks if not each.is_random)
        remarks.append(f"each network sees the size it was trained with ({shown}); --image_size gives all the same")
    for each in networks:
        trained = trained_size(each.header)
        if image_size and trained not in (None, image_size) and not each.is_random:
            remarks.append(f"{each.name} was trained with images of {trained} px and sees {image_size} px")
        if trained is None and not image_size and not each.is_random:
            remarks.append(f"{each.name} does not say its size of images and sees {each.size} px (--image_size)")
    return remarks
