"""Covariates: numbers that are given with each image, such as an age or a dose, as inputs of a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from downstream.base.pooled_head import HeadKind, pooled_head
from ssl_toolkit.errors import counted
from ssl_toolkit.modules.multiplicative import MultiplicativeInteraction

if TYPE_CHECKING:
    from jaxtyping import Float

# of the mean: rounding then stays below a hundredth of a standard deviation
_LEAST_SPREAD = 2.0**-16

CovariateUse = Literal["none", "concatenated", "multiplicative"]


class Covariates(nn.Module):
    """Standardization of covariates by mean and standard deviation of the training images.

    An unknown number becomes the mean, that is 0. Of each covariate that some training image lacks there is one more
    input, which is 1 where it is known and 0 where it is not.

    Args:
        names: Of the covariates.
        gaps: Numbers of those, from 0, that some training image lacks.

    Attributes:
        names: As given.
        gaps: As given.
        num_inputs: How many inputs a head gets.
    """

    mean: Tensor
    std: Tensor
    has_gaps: Tensor
    _places: Tensor

    def __init__(self, names: Sequence[str], gaps: Sequence[int] = ()) -> None:
        super().__init__()
        if not set(gaps) <= set(range(len(names))):
            raise ValueError(f"gaps are {list(gaps)}, expected numbers of {len(names)} covariates")
        self.names, self.gaps = list(names), list(gaps)
        self.num_inputs = len(self.names) + len(self.gaps)
        self.register_buffer("mean", torch.zeros(len(self.names)))
        self.register_buffer("std", torch.ones(len(self.names)))
        # by which a checkpoint tells
        self.register_buffer(
            "has_gaps", torch.tensor([float(number in self.gaps) for number in range(len(self.names))])
        )
        self.register_buffer("_places", torch.tensor(self.gaps, dtype=torch.int64), persistent=False)

    @classmethod
    def of(cls, names: Sequence[str], training: Float[Tensor, "images covariates"]) -> Covariates:
        """The standardization of some training images.

        Args:
            names: Of the covariates.
            training: Those of the training images; NaN where one is not known.

        Raises:
            ValueError: In one line, for a covariate that no training image has, or all have alike or nearly so.
        """
        unknown = training.isnan()
        found = cls(names, unknown.any(dim=0).nonzero().flatten().tolist())
        for number, name in enumerate(names):
            known = training[~unknown[:, number], number].double()
            if not len(known):
                raise ValueError(f"no training image has a number for {name!r}; leave it out of data.covariates")
            found.mean[number], found.std[number] = known.mean(), known.std(correction=0)
            if bool((known == known[0]).all()) or not float(found.std[number]):
                raise ValueError(
                    f"all training images have {float(known[0]):g} for {name!r}, so that it tells nothing; leave it "
                    "out of data.covariates"
                )
            if float(found.std[number]) < _LEAST_SPREAD * float(known.mean().abs()):
                raise ValueError(
                    f"{name!r} differs by {float(found.std[number]):.3g} around {float(known.mean()):g}, which the "
                    "numbers of float32 hardly tell apart: subtract a constant, such as the least of them"
                )
        return found

    def words(self, training: Float[Tensor, "images covariates"]) -> str:
        """What is known of them, for people: their names, and how many training images lack one."""
        lacking = [
            f"{name} is not known of {int(training[:, number].isnan().sum()):,}"
            for number, name in enumerate(self.names)
            if number in self.gaps
        ]
        shown = ", ".join(self.names)
        if not lacking:
            return shown
        return f"{shown}; of {counted(len(training), 'training images')} {', '.join(lacking)}: the mean there, and an \
input that says so"

    def forward(self, covariates: Float[Tensor, "batch covariates"]) -> Float[Tensor, "batch inputs"]:
        """What a head gets.

        Args:
            covariates: In their own units, NaN where one is not known.

        Returns:
            Tensor of shape ``[batch, num_inputs]``: the standardized covariates, then what is known of those with gaps.
        """
        unknown = covariates.isnan()
        standardized = ((covariates - self.mean) / self.std).masked_fill(unknown, 0.0)
        if not self.gaps:
            return standardized
        known = (~unknown).to(standardized.dtype).index_select(1, self._places)
        return torch.cat([standardized, known], dim=1)


class MultiplicativeLayer(nn.Module):
    """`MultiplicativeInteraction` of the features and the covariates that lie side by side in one tensor.

    Args:
        num_features: Width of the features.
        num_inputs: Of what follows them.
        like: The linear layer of both that it stands for: of its outputs, and with a bias if that has one.
        rank: As for `MultiplicativeInteraction`.
        begins_linear: Whether the products are 0 at first, so that it begins as a linear layer does.
    """

    def __init__(
        self, num_features: int, num_inputs: int, like: nn.Linear, rank: int | None, begins_linear: bool
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.interaction = MultiplicativeInteraction(
            num_features, num_inputs, like.out_features, rank, bias=like.bias is not None
        )
        if begins_linear:
            # of a product of factors the last alone: 0 in two of them would stay
            nn.init.zeros_(self.interaction.products if rank is None else self.interaction.mix)

    def forward(self, inputs: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
        """The outputs for features with covariates."""
        return self.interaction(inputs[:, : self.num_features], inputs[:, self.num_features :])


def covariate_head(
    use: CovariateUse,
    kind: HeadKind,
    num_features: int,
    num_inputs: int,
    num_outputs: int,
    hidden: int,
    dropout: float,
    rank: int | None = None,
) -> nn.Sequential:
    """The layers of a head that reads covariates: its first layer gets them beside the features.

    Args:
        use: "concatenated": the first layer is linear in both; "multiplicative": it multiplies them, too.
        kind: As for `pooled_head`.
        num_features: Of the backbone.
        num_inputs: Of `Covariates`.
        num_outputs: Scores, or numbers.
        hidden: As for `pooled_head`.
        dropout: As for `pooled_head`.
        rank: As for `MultiplicativeInteraction`.
    """
    layers = pooled_head(kind, num_features + num_inputs, num_outputs, hidden, dropout)
    if use == "multiplicative":
        place, first = next((place, layer) for place, layer in enumerate(layers) if isinstance(layer, nn.Linear))
        layers[place] = MultiplicativeLayer(num_features, num_inputs, first, rank, begins_linear=kind == "linear")
    return layers
