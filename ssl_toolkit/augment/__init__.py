"""Augmentation of whole batches, on any device, with separate parameters for each sample.

Every operation is a pure function of images and parameters; what is random about the parameters is drawn by key
(`ssl_toolkit.random`). `RandomView` and `CenterView` put the operations together; `RandAugment`, `TrivialAugment` and
`AugMix` are policies for `RandomView`.
"""

from ssl_toolkit.augment.base import View
from ssl_toolkit.augment.boxes import centre_boxes, random_erasing_boxes, random_resized_crop_boxes
from ssl_toolkit.augment.center import CenterView
from ssl_toolkit.augment.colour import brightness, contrast, gray_level, grayscale, hue, saturation, solarize
from ssl_toolkit.augment.geometry import crop_resize, gaussian_blur, reduce_resolution
from ssl_toolkit.augment.jitter import Jitter, colour_jitter, draw_jitter
from ssl_toolkit.augment.patches import drop_channels, erase, project_colour, rescale, take_patches
from ssl_toolkit.augment.policies import AugMix, Policy, RandAugment, TrivialAugment
from ssl_toolkit.augment.tone import autocontrast, equalize, posterize, sharpness, solarize_above
from ssl_toolkit.augment.views import RandomView, Views
from ssl_toolkit.augment.warp import rotate, shear, translate

__all__ = [
    "AugMix",
    "CenterView",
    "Jitter",
    "Policy",
    "RandAugment",
    "RandomView",
    "TrivialAugment",
    "View",
    "Views",
    "autocontrast",
    "brightness",
    "centre_boxes",
    "colour_jitter",
    "contrast",
    "crop_resize",
    "draw_jitter",
    "drop_channels",
    "equalize",
    "erase",
    "gaussian_blur",
    "gray_level",
    "grayscale",
    "hue",
    "posterize",
    "project_colour",
    "random_erasing_boxes",
    "random_resized_crop_boxes",
    "reduce_resolution",
    "rescale",
    "rotate",
    "saturation",
    "sharpness",
    "shear",
    "solarize",
    "solarize_above",
    "take_patches",
    "translate",
]
