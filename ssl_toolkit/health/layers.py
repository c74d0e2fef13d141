"""Layer statistics at step 0: mean, spread and histogram of activations and gradients, and dead units."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ssl_toolkit.init import Initializer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS = 61
_ACTIVATIONS = tuple(
    getattr(nn, name) for name in nn.modules.activation.__all__ if name not in ("MultiheadAttention", "Softmax")
)
# a unit of these gives exactly 0 and passes no gradient while its input is negative
_RECTIFIERS = (nn.ReLU, nn.ReLU6)


class Values(NamedTuple):
    """The numbers of a tensor in short.

    Attributes:
        mean: Their mean.
        std: Their standard deviation.
        norm: The root of the sum of their squares.
        edges: Where the histogram's bins begin, and where the last one ends.
        counts: Of the bins.
    """

    mean: float
    std: float
    norm: float
    edges: list[float]
    counts: list[int]


class LayerStatistics(NamedTuple):
    """One layer, as one batch sees it.

    Attributes:
        name: Of the module; a module that is called more than once has a number behind it.
        activations: Its output.
        gradients: The loss's gradient with respect to its output; None if the loss does not depend on it.
        dead: Fraction of the units that the ReLU after it sets to 0 for the whole batch, at every place of a map; None
            if no ReLU (as a module) follows.
    """

    name: str
    activations: Values
    gradients: Values | None
    dead: float | None


def layer_statistics(
    module: nn.Module,
    loss: Callable[[Any], Tensor],
    initializers: Iterable[Initializer] = (),
    after: Literal["weights", "activations"] = "weights",
    seed: int = 0,
) -> list[LayerStatistics]:
    """Layer statistics of one forward and backward pass.

    The module is copied and stays as it is, and so does torch's generator.

    Args:
        module: The network, or a task.
        loss: Computes a scalar from it.
        initializers: Set the copy's parameters first.
        after: Look at the outputs of the layers with weights, or at those of the activation functions (modules).
        seed: Of the initialisation and of whatever the loss draws.

    Returns:
        The layers in the order in which they compute.
    """
    with torch.random.fork_rng(_gpus(module)):
        torch.manual_seed(seed)
        copied = copy.deepcopy(module)
        for initialize in initializers:
            initialize(copied)
        torch.manual_seed(seed)
        with _Recorder(copied, after) as recorder:
            loss(copied).backward()
    return recorder.statistics()


class DeadUnits:
    """Dead units: the fraction of each ReLU's, in the forward passes within the context.

    Args:
        module: Its ReLU modules are looked at.
    """

    def __init__(self, module: nn.Module) -> None:
        self._alive: dict[str, list[Tensor]] = {}
        self._hooks = [
            child.register_forward_hook(self._hook(name))
            for name, child in trained_modules(module)
            if isinstance(child, _RECTIFIERS)
        ]

    def stop(self) -> None:
        """Looks no longer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def fractions(self) -> dict[str, float]:
        """The fraction of dead units by layer, of all passes together."""
        if not self._alive:
            return {}
        dead = [1 - torch.stack(parts).any(dim=0).float().mean() for parts in self._alive.values()]
        return dict(zip(self._alive, torch.stack(dead).tolist(), strict=True))

    def _hook(self, name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Tensor) -> None:
            alive = _alive(output)
            places = self._alive.setdefault(name, [])
            if not places or places[0].shape == alive.shape:
                places.append(alive)

        return look


class _Recorder:
    def __init__(self, module: nn.Module, after: Literal["weights", "activations"]) -> None:
        self._names: list[str] = []
        self._activations: dict[str, Values] = {}
        self._gradients: dict[str, Values] = {}
        self._dead: dict[str, float] = {}
        self._hooks = []
        for name, child in trained_modules(module):
            if next(child.children(), None) is not None:
                continue
            wanted = isinstance(child, _ACTIVATIONS) if after == "activations" else has_weights(child)
            if wanted or isinstance(child, _RECTIFIERS):
                self._hooks.append(child.register_forward_hook(self._hook(name, wanted)))

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()

    def statistics(self) -> list[LayerStatistics]:
        return [
            LayerStatistics(name, self._activations[name], self._gradients.get(name), self._dead.get(name))
            for name in self._names
        ]

    def _hook(self, name: str, wanted: bool) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return
            if wanted:
                self._begin(name, output)
            if isinstance(module, _RECTIFIERS) and self._names:
                self._dead.setdefault(self._names[-1], float(1 - _alive(output).float().mean()))

        return look

    def _begin(self, name: str, output: Tensor) -> None:
        times = sum(known == name or known.startswith(f"{name} #") for known in self._names)
        label = f"{name} #{times + 1}" if times else name
        self._names.append(label)
        # now, because a ReLU may overwrite it
        self._activations[label] = summary(output)
        if output.requires_grad:
            output.register_hook(lambda gradient: self._gradients.__setitem__(label, summary(gradient)))


def trained_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules by name, without those within a part that is frozen as a whole: a teacher, a frozen backbone."""
    named = dict(module.named_modules())
    frozen = [
        f"{name}."
        for name, child in named.items()
        if any(True for _ in child.parameters()) and not any(each.requires_grad for each in child.parameters())
    ]
    for name, child in named.items():
        if not f"{name}.".startswith(tuple(frozen)):
            yield name, child


def has_weights(module: nn.Module) -> bool:
    """Whether a module itself has a parameter of two or more dimensions."""
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))


@torch.no_grad()
def summary(tensor: Tensor) -> Values:
    """The numbers of a tensor in short; what is not finite counts for the mean and the norm, not for the histogram."""
    numbers = tensor.detach().float().flatten()
    finite = numbers[numbers.isfinite()]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(finite, _BINS, low, high)
    edges = torch.linspace(low, high, _BINS + 1)
    std = float(numbers.std(correction=0))
    return Values(float(numbers.mean()), std, float(numbers.norm()), edges.tolist(), counts.int().tolist())


def _alive(output: Tensor) -> Tensor:
    """Which units are above 0 for some sample at some place: channels of maps, the last axis of other tensors."""
    detached = output.detach() > 0
    unit = 1 if detached.ndim > 2 else detached.ndim - 1
    return detached.movedim(unit, 0).flatten(1).any(dim=1)


def _gpus(module: nn.Module) -> list[torch.device]:
    return list({parameter.device for parameter in module.parameters() if parameter.device.type == "cuda"})


def draw_layers(statistics: Sequence[LayerStatistics], title: str = "") -> Figure:
    """A row of two histograms for each layer: its activations, and its gradients.

    Args:
        statistics: Of `layer_statistics`.
        title: Above them.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 0.55 + 0.5 * len(statistics)), layout="constrained")
    axes = figure.subplots(len(statistics), 2, squeeze=False)
    for row, layer in zip(axes, statistics, strict=True):
        draw_values(row[0], layer.activations, "#0072b2")
        draw_values(row[1], layer.gradients, "#d55e00")
        row[0].set_ylabel(layer.name, rotation=0, ha="right", va="center", fontsize=6)
    for place, text in zip(axes[0], ("activations", "gradients"), strict=True):
        place.set_title(text, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=9)
    return figure


def draw_values(axes: Axes, values: Values | None, colour: str) -> None:
    """A small histogram with its standard deviation."""
    axes.set_yticks([])
    axes.tick_params(labelsize=5, length=2, pad=1)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    if values is None:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "none", ha="center", va="center", fontsize=6, transform=axes.transAxes)
        return
    axes.stairs([count**0.5 for count in values.counts], values.edges, fill=True, color=colour, alpha=0.8)
    axes.locator_params(axis="x", nbins=4)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
    axes.xaxis.get_offset_text().set_fontsize(5)
    axes.text(0.99, 0.9, f"std {values.std:.2g}", ha="right", va="top", fontsize=6, transform=axes.transAxes)
