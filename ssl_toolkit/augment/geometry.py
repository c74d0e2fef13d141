"""Crop, resize, flip and blur as matrix products: one matrix a sample for the rows and one for the columns.

A crop, an antialiased resize, a flip and a Gaussian blur are linear along each axis, so each of them, and each chain of
them, is ``rows @ image @ columns^T``. A whole batch, each sample with its own parameters, is then two batched
matrix products, on any device. Of large images on a CPU they are the wrong tool: each output pixel is a sum over a
whole row, and nearly all of its weights are zero. There each image is resized alone, with the same result.
"""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_toolkit.batch import Images
from ssl_toolkit.perf.matmul import onednn_matmul

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Num

Interpolation = Literal["bilinear", "bicubic"]

# from this side in pixels on, a CPU resizes one image after the other sooner than all of them as products
_LARGE = 64


def crop_resize(
    images: Images | Tensor,
    boxes: Tensor,
    size: int | tuple[int, int],
    flip: Tensor | None = None,
    vertical_flip: Tensor | None = None,
    blur: Tensor | None = None,
    blur_kernel: int = 3,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Crop and resize: cuts a box out of each image, resizes it with antialiasing, and mirrors some of them.

    For boxes with integer corners the result is that of torchvision's ``resized_crop(..., antialias=True)`` on the
    float image. Of a pixel that a box covers in part, the covered fraction counts.

    Args:
        images: uint8 images (read as values / 255) or float images, ``[batch, channels, height, width]``.
        boxes: ``[batch, 4]``: top, left, height and width of each box in pixels, inside the image.
        size: Side, or height and width, of the result in pixels.
        flip: bool ``[batch]``: which samples to mirror left to right.
        vertical_flip: bool ``[batch]``: which samples to mirror upside down.
        blur: ``[batch]``: standard deviation in result pixels of a Gaussian blur of the result (see `gaussian_blur`)
            that costs no extra product; 0 for none.
        blur_kernel: Width of the blur's kernel in pixels, odd.
        interpolation: "bilinear" or "bicubic".

    Returns:
        float32 tensor of shape ``[batch, channels, *size]``. Bilinear results keep the range of the images; bicubic
        ones may overshoot it.
    """
    pixels = images.pixels if isinstance(images, Images) else images
    height, width = (size, size) if isinstance(size, int) else size
    boxes = boxes.to(torch.float32)
    large = pixels.device.type == "cpu" and min(*pixels.shape[2:], height, width) >= _LARGE
    if large and not boxes.frac().any():
        result = _resize_each(pixels, boxes, (height, width), flip, vertical_flip, interpolation)
        return result if blur is None else gaussian_blur(result, blur, blur_kernel)
    rows = resize_matrices(boxes[:, 0], boxes[:, 2], pixels.shape[2], height, vertical_flip, interpolation)
    columns = resize_matrices(boxes[:, 1], boxes[:, 3], pixels.shape[3], width, flip, interpolation)
    with torch.autocast(pixels.device.type, enabled=False):
        if blur is not None:
            rows = torch.bmm(blur_matrices(blur, blur_kernel, height), rows)
            columns = torch.bmm(blur_matrices(blur, blur_kernel, width), columns)
    if pixels.dtype == torch.uint8:
        rows = rows / 255
    return transform(pixels.to(torch.float32), rows, columns)


def _resize_each(
    pixels: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    flip: Tensor | None,
    vertical_flip: Tensor | None,
    interpolation: Interpolation,
) -> Tensor:
    """What `crop_resize` does, one image after the other, for boxes with integer corners."""
    result = torch.empty(len(pixels), pixels.shape[1], *size, dtype=torch.float32)
    unit = 1 / 255 if pixels.dtype == torch.uint8 else 1.0
    never = torch.zeros(len(pixels), dtype=torch.bool)
    flips = torch.stack([never if each is None else each for each in (vertical_flip, flip)], dim=1)
    for index, (box, axes) in enumerate(zip(boxes.to(torch.int64).tolist(), flips.tolist(), strict=True)):
        top, left, height, width = box
        crop = pixels[index : index + 1, :, top : top + height, left : left + width].to(torch.float32)
        resized = F.interpolate(crop, size, mode=interpolation, antialias=True)[0]
        mirrored = [axis for axis, is_flipped in zip((1, 2), axes, strict=True) if is_flipped]
        torch.mul(resized.flip(mirrored) if mirrored else resized, unit, out=result[index])
    return result


def gaussian_blur(
    images: Float[Tensor, "batch channels height width"], sigmas: Float[Tensor, " batch"], kernel_size: int
) -> Float[Tensor, "batch channels height width"]:
    """Gaussian blur, each image with its own sigma, as torchvision's ``gaussian_blur`` (mirrored at the borders).

    Args:
        images: float ``[batch, channels, height, width]``.
        sigmas: ``[batch]``: standard deviations in pixels; 0 leaves the image as it is.
        kernel_size: Width of the kernel in pixels, odd, less than twice the shorter side.

    Returns:
        Tensor of the shape of ``images``.
    """
    if images.device.type == "cpu" and 0 < (chosen := sigmas > 0).sum() < len(images):
        result = images.clone()
        result[chosen] = gaussian_blur(images[chosen], sigmas[chosen], kernel_size)
        return result
    rows = blur_matrices(sigmas, kernel_size, images.shape[2])
    columns = rows if images.shape[2] == images.shape[3] else blur_matrices(sigmas, kernel_size, images.shape[3])
    return transform(images, rows, columns)


def reduce_resolution(
    images: Float[Tensor, "batch channels side side"], sides: Num[Tensor, " batch"]
) -> Float[Tensor, "batch channels side side"]:
    """Resizes each square image to a lower resolution and back, with antialiasing.

    Doersch et al. (2015, arXiv 1505.05192, section 3.1) do so with some patches, down to 100 pixels in all, against
    low-level shortcuts.

    Args:
        images: float ``[batch, channels, side, side]``.
        sides: ``[batch]``: the lower side of each in pixels, rounded, from 1 to ``side``; ``side`` leaves the image
            as it is.

    Returns:
        Tensor of the shape of ``images``.
    """
    side = images.shape[-1]
    lower = sides.to(torch.float32).round()
    start = torch.zeros_like(lower)
    # the rows of `down` beyond the lower side are never read: the weights of `up` for them are zero
    down = resize_matrices(start, torch.full_like(lower, side), side, side, targets=lower)
    up = resize_matrices(start, lower, side, side)
    with torch.autocast(images.device.type, enabled=False):
        there_and_back = torch.bmm(up, down)
    return transform(images, there_and_back, there_and_back)


def transform(
    images: Float[Tensor, "batch channels height width"],
    rows: Float[Tensor, "batch new_height height"],
    columns: Float[Tensor, "batch new_width width"],
) -> Float[Tensor, "batch channels new_height new_width"]:
    """``rows @ images @ columns^T`` for each sample and channel, in full precision even under autocast.

    Args:
        images: float ``[batch, channels, height, width]``.
        rows: ``[batch, new_height, height]``.
        columns: ``[batch, new_width, width]``.

    Returns:
        Tensor of shape ``[batch, channels, new_height, new_width]``.
    """
    batch, channels, height, width = images.shape
    # for small ones the choice takes longer than it saves
    matmul = onednn_matmul() if min(height, width) >= 64 else nullcontext()
    with torch.autocast(images.device.type, enabled=False), matmul:
        narrow = torch.bmm(images.flatten(1, 2), columns.transpose(1, 2)).unflatten(1, (channels, height))
        result = images.new_empty(batch, channels, rows.shape[1], columns.shape[1])
        for channel in range(channels):
            result[:, channel] = torch.bmm(rows, narrow[:, channel])
    return result


def resize_matrices(
    starts: Float[Tensor, " batch"],
    lengths: Float[Tensor, " batch"],
    num_inputs: int,
    num_outputs: int,
    flip: Bool[Tensor, " batch"] | None = None,
    interpolation: Interpolation = "bilinear",
    targets: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch outputs inputs"]:
    """Resize matrices: one axis of an antialiased crop and resize, by a filter as wide as the step, or a pixel.

    Args:
        starts: float ``[batch]``: where each interval begins, in pixels.
        lengths: float ``[batch]``: the length of each interval, in pixels.
        num_inputs: Length of the axis of the images.
        num_outputs: Length of the axis of the results.
        flip: bool ``[batch]``: where to mirror the result.
        interpolation: "bilinear" or "bicubic".
        targets: float ``[batch]``: how many outputs each interval is resized to, at most ``num_outputs``, which is
            the default; the rows beyond them have no meaning.

    Returns:
        float32 tensor of shape ``[batch, num_outputs, num_inputs]``; its rows sum to 1, or are zero where they lie
        outside of the axis.
    """
    outputs = torch.arange(num_outputs, device=starts.device, dtype=torch.float32).expand(len(starts), -1)
    inputs = torch.arange(num_inputs, device=starts.device, dtype=torch.float32)
    starts, lengths = starts[:, None], lengths[:, None]
    if flip is not None:
        outputs = torch.where(flip[:, None], num_outputs - 1 - outputs, outputs)
    step = lengths / (num_outputs if targets is None else targets[:, None])
    centres = starts + (outputs + 0.5) * step
    covered = (torch.minimum(inputs + 1, starts + lengths) - torch.maximum(inputs, starts)).clamp_(0, 1)
    distances = ((inputs + 0.5 - centres[:, :, None]) / step.clamp(min=1)[:, :, None]).abs_()
    weights = _FILTERS[interpolation](distances).mul_(covered[:, None, :])
    return weights.div_(weights.sum(2, keepdim=True).clamp_(min=1e-12))


def _triangle(distances: Tensor) -> Tensor:
    return distances.neg_().add_(1).clamp_(min=0)


def _cubic(distances: Tensor) -> Tensor:
    """The cubic convolution kernel with a = -0.5 (Keys, 1981), torch's and Pillow's choice with antialiasing."""
    near = (1.5 * distances - 2.5) * distances * distances + 1
    far = ((-0.5 * distances + 2.5) * distances - 4) * distances + 2
    return torch.where(distances < 1, near, torch.where(distances < 2, far, 0.0))


_FILTERS = {"bilinear": _triangle, "bicubic": _cubic}


def blur_matrices(
    sigmas: Float[Tensor, " batch"], kernel_size: int, length: int
) -> Float[Tensor, "batch length length"]:
    """Blur matrices: one axis of a Gaussian blur, mirrored at the borders (the border pixel is not repeated).

    Args:
        sigmas: ``[batch]``: standard deviations in pixels; 0 gives the identity.
        kernel_size: Width of the kernel in pixels, odd, less than ``2 * length``.
        length: Length of the axis.

    Returns:
        float32 tensor of shape ``[batch, length, length]``.
    """
    reach = kernel_size // 2
    if kernel_size % 2 == 0 or kernel_size < 1:
        raise ValueError(f"a blur kernel needs an odd number of pixels, got {kernel_size}")
    if reach >= length:
        raise ValueError(f"a blur kernel of {kernel_size} pixels needs images of at least {reach + 1}, got {length}")
    distance = torch.arange(reach + 1, device=sigmas.device)
    half = torch.exp(-0.5 * (distance / sigmas.to(torch.float32).clamp(min=1e-6)[:, None]) ** 2)
    half = half / (2 * half.sum(1, keepdim=True) - half[:, :1])
    with torch.autocast(sigmas.device.type, enabled=False):
        return (half @ _at_each_distance(reach, length, sigmas.device)).view(-1, length, length)


@functools.lru_cache(maxsize=8)
def _at_each_distance(reach: int, length: int, device: torch.device) -> Tensor:
    """Which outputs and inputs of a blur lie at each distance: directly, around the first pixel, around the last.

    Returns:
        float32 tensor of shape ``[reach + 1, length * length]``, kept because it takes longer than the blur itself.
    """
    with torch.inference_mode(False):
        output, place = torch.arange(length, device=device)[:, None], torch.arange(length, device=device)
        distance = torch.arange(reach + 1, device=device)[:, None, None]
        pattern = ((output - place).abs() == distance).to(torch.float32)
        pattern += (output + place == distance) & (place > 0)
        pattern += (2 * (length - 1) - output - place == distance) & (place < length - 1)
        return pattern.flatten(1)
