"""Networks of textbooks, in timm's registry: ``lenet5``, ``alexnet_small``, ``conv_stack`` and ``mlp``.

    backbone = Backbone("lenet5", in_channels=1)
    backbone = Backbone("alexnet_small")
    backbone = Backbone("conv_stack", kwargs={"channels": [16, 32, 64]})
    backbone = Backbone("mlp", kwargs={"size": 28})

Their weights start as torch's layers do. Plain timm does not know them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from ssl_toolkit.modules.staged_network import StagedNetwork, default_config

default_cfgs = {
    **default_config("lenet5", "layer1.0", 32, 1),
    **default_config("alexnet_small", "layer1.0", 32, 4),
    **default_config("conv_stack", "layer1.0", 32, 4),
    **default_config("mlp", "layer1.0", 32, 1),
}


class LeNet5(StagedNetwork):
    """LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition").

    Three 5x5 convolutions of 6, 16 and 120 channels with tanh, the first two followed by an average over 2x2. Of an
    image of 32 pixels the last map is one place, the paper's layer C5; of larger ones it is averaged. Three things
    differ: every map of the second layer sees all maps of the first, the averages have no weights, and the features are
    C5, which one linear layer classifies, without the paper's F6.

    Args:
        num_classes: Width of the classifier; 0 for none.
        in_chans: Number of channels of the images.
        drop_rate: Dropout before the classifier.
        global_pool: ``avg``.
    """

    def __init__(
        self, num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.0, global_pool: Literal["avg"] = "avg"
    ) -> None:
        stages = {
            "layer1": nn.Sequential(nn.Conv2d(in_chans, 6, 5), nn.Tanh(), nn.AvgPool2d(2)),
            "layer2": nn.Sequential(nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)),
            "layer3": nn.Sequential(nn.Conv2d(16, 120, 5), nn.Tanh()),
        }
        super().__init__(stages, (6, 16, 120), (2, 4, 4), num_classes, in_chans, drop_rate, global_pool)


class AlexNetSmall(StagedNetwork):
    """AlexNet for images of 32 to 64 pixels: its five convolutions with ReLU, all 3x3 and of stride 1.

    Widths as of one tower (Krizhevsky 2014, arXiv 1404.5997), pooling after the first, second and fifth convolution as
    in the original (Krizhevsky, Sutskever and Hinton 2012). The three fully connected layers are the mean of the last
    map and a linear classifier; there is no local response normalisation.

    Args:
        num_classes: Width of the classifier; 0 for none.
        in_chans: Number of channels of the images.
        channels: Of the five convolutions.
        drop_rate: Dropout before the classifier.
        global_pool: ``avg``.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        channels: Sequence[int] = (64, 192, 384, 256, 256),
        drop_rate: float = 0.0,
        global_pool: Literal["avg"] = "avg",
    ) -> None:
        if len(channels) != 5:
            raise ValueError(f"alexnet_small takes five channels, got {list(channels)}")
        first, second, third, fourth, fifth = channels
        stages = {
            "layer1": nn.Sequential(*_convolution(in_chans, first), nn.MaxPool2d(2)),
            "layer2": nn.Sequential(*_convolution(first, second), nn.MaxPool2d(2)),
            "layer3": nn.Sequential(
                *_convolution(second, third),
                *_convolution(third, fourth),
                *_convolution(fourth, fifth),
                nn.MaxPool2d(2),
            ),
        }
        super().__init__(stages, (first, second, fifth), (2, 4, 8), num_classes, in_chans, drop_rate, global_pool)


class ConvStack(StagedNetwork):
    """A plain stack: in each stage a convolution with ReLU that keeps the map's size, and a maximum over 2x2.

    Args:
        num_classes: Width of the classifier; 0 for none.
        in_chans: Number of channels of the images.
        channels: Of each stage, 1 to 8 of them.
        kernel_size: Odd.
        drop_rate: Dropout before the classifier.
        global_pool: ``avg``.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        channels: Sequence[int] = (32, 64, 128),
        kernel_size: int = 3,
        drop_rate: float = 0.0,
        global_pool: Literal["avg"] = "avg",
    ) -> None:
        if not 1 <= len(channels) <= 8 or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"conv_stack takes 1 to 8 channels and an odd kernel_size, got {list(channels)} and {kernel_size}"
            )
        inputs = [in_chans, *channels[:-1]]
        stages = {
            f"layer{number}": nn.Sequential(*_convolution(given, width, kernel_size), nn.MaxPool2d(2))
            for number, (given, width) in enumerate(zip(inputs, channels, strict=True), start=1)
        }
        reductions = [2**number for number in range(1, len(channels) + 1)]
        super().__init__(stages, channels, reductions, num_classes, in_chans, drop_rate, global_pool)


class AllPixels(nn.Conv2d):
    """A fully connected layer on all pixels of an image of one size: a convolution whose kernel is the image.

    Args:
        in_chans: Number of channels of the images.
        width: Outputs.
        size: Side of the images in pixels.
    """

    def __init__(self, in_chans: int, width: int, size: int) -> None:
        super().__init__(in_chans, width, size)

    def forward(self, input: Tensor) -> Tensor:
        """Outputs of shape ``[batch, width, 1, 1]``; images of another size are refused."""
        height, width = input.shape[-2:]
        if (height, width) != self.kernel_size:
            raise ValueError(
                f"mlp takes images of {self.kernel_size[0]} px and no others, got {height} x {width}: set "
                f"--model.backbone.kwargs '{{size: {max(height, width)}}}'"
            )
        return super().forward(input)


class PixelMLP(StagedNetwork):
    """A multi-layer perceptron on the pixels of an image, as a baseline: what a network reaches that knows nothing of
    neighbouring pixels (Rumelhart, Hinton and Williams 1986, "Learning representations by back-propagating errors").

    Fully connected layers with ReLU, each followed by dropout. It takes images of one size, so a pretext task has no
    use for it. Its features are the outputs of the last hidden layer.

    Args:
        num_classes: Width of the classifier; 0 for none.
        in_chans: Number of channels of the images.
        size: Side of the images in pixels, at least 1.
        widths: Of the hidden layers, 1 to 8 of them.
        drop_rate: Dropout after each hidden layer.
        global_pool: ``avg``.
    """

    is_baseline = True

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        size: int = 32,
        widths: Sequence[int] = (512, 256),
        drop_rate: float = 0.0,
        global_pool: Literal["avg"] = "avg",
    ) -> None:
        if size < 1 or not 1 <= len(widths) <= 8 or min(widths) < 1:
            raise ValueError(f"mlp takes a size of at least 1 and 1 to 8 widths, got {size} and {list(widths)}")
        layers = [AllPixels(in_chans, widths[0], size)]
        layers += [nn.Conv2d(given, width, 1) for given, width in pairwise(widths)]
        stages = {
            f"layer{number}": nn.Sequential(layer, nn.ReLU(inplace=True), nn.Dropout(drop_rate))
            for number, layer in enumerate(layers, start=1)
        }
        # the classifier comes right after the last hidden layer, which has its dropout
        super().__init__(stages, widths, [size] * len(widths), num_classes, in_chans, 0.0, global_pool)
        self.only_size = size


def _convolution(in_channels: int, out_channels: int, kernel_size: int = 3) -> list[nn.Module]:
    """A convolution that keeps the map's size, and ReLU."""
    return [nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2), nn.ReLU(inplace=True)]


@register_model
def lenet5(pretrained: bool = False, **kwargs: Any) -> LeNet5:
    """LeNet-5 (LeCun et al. 1998); 51 thousand parameters."""
    return build_model_with_cfg(LeNet5, "lenet5", pretrained, **kwargs)


@register_model
def alexnet_small(pretrained: bool = False, **kwargs: Any) -> AlexNetSmall:
    """AlexNet for small images; 2.3 million parameters."""
    return build_model_with_cfg(AlexNetSmall, "alexnet_small", pretrained, **kwargs)


@register_model
def conv_stack(pretrained: bool = False, **kwargs: Any) -> ConvStack:
    """A plain stack of convolutions, ReLU and pooling; 93 thousand parameters."""
    return build_model_with_cfg(ConvStack, "conv_stack", pretrained, **kwargs)


@register_model
def mlp(pretrained: bool = False, **kwargs: Any) -> PixelMLP:
    """A multi-layer perceptron on pixels; 1.7 million parameters."""
    return build_model_with_cfg(PixelMLP, "mlp", pretrained, **kwargs)
