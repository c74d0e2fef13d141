"""Presets: named settings of random views, as published."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

from ssl_toolkit.errors import nearest

Preset = Literal[
    "simclr", "simclr_cifar", "moco_v2", "byol_first", "byol_second", "large_crop", "small_crop", "crop_and_flip"
]


class Settings(NamedTuple):
    """The arguments of `ssl_toolkit.augment.RandomView` that a preset sets."""

    scale: tuple[float, float] = (0.08, 1.0)
    hflip: float = 0.5
    jitter_prob: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    grayscale: float = 0.2
    blur: float = 0.5
    solarize: float = 0.0


_BYOL = Settings(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)

PRESETS: dict[str, Settings] = {
    # Chen et al. 2020, arXiv 2002.05709, appendix A, at strength 1; CIFAR-10: appendix B.9, strength 0.5, no blur
    "simclr": Settings(),
    "simclr_cifar": Settings(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.0),
    # Chen et al. 2020, arXiv 2003.04297, section 3: MoCo's crops, with SimCLR's blur and a weaker jitter
    "moco_v2": Settings(scale=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    # Grill et al. 2020, arXiv 2006.07733, appendix B, table 6; Barlow Twins has the same two
    "byol_first": _BYOL._replace(blur=1.0),
    "byol_second": _BYOL._replace(blur=0.1, solarize=0.2),
    # multi-crop: Caron et al. 2020, arXiv 2006.09882, section 3.2 and appendix A.2, with SimCLR's colours
    "large_crop": Settings(scale=(0.14, 1.0)),
    "small_crop": Settings(scale=(0.05, 0.14)),
    # no colours, for tasks of position
    "crop_and_flip": Settings(
        jitter_prob=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grayscale=0.0, blur=0.0
    ),
}


def resolve(preset: str, given: dict[str, Any]) -> Settings:
    """The settings of a preset with those that are given.

    Args:
        preset: Its name.
        given: Arguments of `ssl_toolkit.augment.RandomView`; None leaves the preset's.

    Raises:
        ValueError: There is no such preset.
    """
    if preset not in PRESETS:
        names = get_args(Preset)
        raise ValueError(f"view.preset is {preset!r}, expected one of {', '.join(names)}{nearest(preset, names)}")
    return PRESETS[preset]._replace(**{name: value for name, value in given.items() if value is not None})


def write_out(config: Any) -> Any:
    """Plain configuration data in which each view has the numbers that its preset stands for.

    So a run does not change when a later version has other presets.
    """
    if isinstance(config, list):
        return [write_out(each) for each in config]
    if not isinstance(config, dict):
        return config
    written = {key: write_out(value) for key, value in config.items()}
    if written.get("preset") in PRESETS and written.keys() >= set(Settings._fields):
        values = resolve(written["preset"], {name: written[name] for name in Settings._fields})
        written |= {name: list(value) if name == "scale" else value for name, value in values._asdict().items()}
    return written
