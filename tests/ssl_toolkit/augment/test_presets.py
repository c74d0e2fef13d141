"""Named settings of views: as published, overridden one by one, and written out in a run's configuration."""

import pytest
import torch

from ssl_toolkit.augment import RandomView, Views
from ssl_toolkit.augment.presets import PRESETS, Settings, write_out
from ssl_toolkit.batch import Images
from ssl_toolkit.random import sample_keys


def test_the_default_is_simclr_at_strength_one():
    view = RandomView(32)
    assert (view.brightness, view.contrast, view.saturation, view.hue) == (0.8, 0.8, 0.8, 0.2)
    assert (view.scale, view.jitter_prob, view.grayscale, view.blur, view.solarize) == ((0.08, 1.0), 0.8, 0.2, 0.5, 0.0)


def test_byol_s_two_views_differ_in_blur_and_solarization_alone():
    """Grill et al. 2020, table 6."""
    first, second = (PRESETS[name]._asdict() for name in ("byol_first", "byol_second"))
    assert {name: (first[name], second[name]) for name in first if first[name] != second[name]} == {
        "blur": (1.0, 0.1), "solarize": (0.0, 0.2),
    }  # fmt: skip
    assert [first[name] for name in ("brightness", "contrast", "saturation", "hue")] == [0.4, 0.4, 0.2, 0.1]


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_given_wins_over_the_preset(preset):
    view = RandomView(32, preset=preset, hue=0.33, blur=0)
    expected = PRESETS[preset]._replace(hue=0.33, blur=0)
    assert {name: getattr(view, name) for name in Settings._fields} == expected._asdict()
    assert repr(RandomView(32, preset=preset)) == f"RandomView(size=32{'' if preset == 'simclr' else f', {preset=}'})"


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_makes_views(preset):
    pixels = torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8)
    images = Images(pixels, torch.full((4, 2), 40))
    views = Views(count=3, size=24, preset=preset)
    assert views.count == 3
    made = views(images, sample_keys(0, 0, torch.arange(4)))
    assert made.shape == (4, 3, 24, 24)
    assert -1e-5 <= made.min() <= made.max() <= 1 + 1e-5


def test_wrong_names_and_counts_are_refused():
    with pytest.raises(ValueError, match=r"view.preset is 'byol_frist', expected one of .*did you mean 'byol_first'"):
        RandomView(32, preset="byol_frist")
    with pytest.raises(ValueError, match="count is 0, expected at least 1"):
        Views(count=0, size=32)


def test_a_configuration_has_the_numbers_instead_of_the_name_alone():
    nothing = dict.fromkeys(Settings._fields)
    view = {"size": 32, **nothing, "blur": 0.25, "preset": "byol_second"}
    config = {
        "model": {"views": {"a": dict(view)}, "view": {"class_path": "X", "init_args": dict(view)}},
        "n": [1, view],
    }
    written = write_out(config)
    expected = {
        "size": 32,
        "preset": "byol_second",
        **PRESETS["byol_second"]._asdict(),
        "blur": 0.25,
        "scale": [0.08, 1.0],
    }
    assert written["model"]["views"]["a"] == written["model"]["view"]["init_args"] == written["n"][1] == expected
    assert written["n"][0] == 1
    assert config["model"]["views"]["a"] == view, "the configuration itself stays"
