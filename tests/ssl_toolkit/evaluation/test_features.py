"""Features: what is computed is what the backbone gives, and the backbone is left exactly as it was."""

import pytest
import torch

from ssl_toolkit.augment import CenterView
from ssl_toolkit.batch import Batch, Images
from ssl_toolkit.evaluation import calibrate_batch_norm, extract_features, random_backbone
from ssl_toolkit.modules.backbone import Backbone
from ssl_toolkit.perf.bfloat16 import has_native_bf16


def batches(num=7, batch_size=3, side=24):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (num, 3, side, side), dtype=torch.uint8, generator=generator)
    places = torch.arange(num)
    return [
        Batch(Images(pixels[chunk], torch.full((len(chunk), 2), side)), chunk + 100, chunk % 2, 0)
        for chunk in places.split(batch_size)
    ]


@pytest.fixture
def backbone():
    return random_backbone(Backbone("resnet18", stem="small", kwargs={"channels": [4, 8, 12, 16]}), seed=1)


def state(module):
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def assert_equal_states(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_features_are_the_backbones_own(backbone):
    extracted = extract_features(backbone, batches(), CenterView(24), precision="32")
    pixels = torch.cat([batch.images.pixels for batch in batches()]).float() / 255
    with torch.no_grad():
        expected = backbone.eval()(pixels)
    assert torch.allclose(extracted.features["pooled"], expected, atol=1e-5)
    assert extracted.features["pooled"].dtype == torch.float32
    assert extracted.indices.tolist() == list(range(100, 107))
    assert extracted.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert extracted.seconds > 0


def test_features_of_every_stage(backbone):
    extracted = extract_features(backbone, batches(), CenterView(24), stages=True, precision="32")
    assert set(extracted.features) == {*backbone.stages, "pooled"}
    for name, channels in zip(backbone.stages, backbone.stage_channels, strict=True):
        assert extracted.features[name].shape == (7, channels)
    alone = extract_features(backbone, batches(), CenterView(24), precision="32")
    assert torch.allclose(extracted.features["pooled"], alone.features["pooled"], atol=1e-6)


def test_the_size_of_the_batches_does_not_matter(backbone):
    backbone.train()
    one, other = (
        extract_features(backbone, batches(batch_size=size), CenterView(16), precision="32") for size in (1, 7)
    )
    assert torch.allclose(one.features["pooled"], other.features["pooled"], atol=1e-5)


def test_the_backbone_and_all_random_numbers_are_left_as_they_were(backbone):
    backbone.train()
    frozen = backbone.model.layer1
    frozen.eval()
    flags = [module.training for module in backbone.modules()]
    before, generator = state(backbone), torch.get_rng_state()
    extract_features(backbone, batches(), CenterView(24), stages=True)
    assert [module.training for module in backbone.modules()] == flags
    assert_equal_states(state(backbone), before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in backbone.parameters())


def test_the_flags_come_back_after_an_error(backbone):
    backbone.train()

    def broken():
        yield batches()[0]
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        extract_features(backbone, broken(), CenterView(24))
    assert all(module.training for module in backbone.modules())


def test_features_can_be_trained_on(backbone):
    features = extract_features(backbone, batches(), CenterView(24)).features["pooled"]
    weight = torch.zeros(1, features.shape[1], requires_grad=True)
    (features @ weight.T).sum().backward()
    assert weight.grad is not None


def test_bf16_is_near_and_is_what_auto_takes_where_it_is_native(backbone):
    calibrate_batch_norm(backbone, batches(), CenterView(24))
    full, half, auto = (
        extract_features(backbone, batches(), CenterView(24), precision=precision).features["pooled"]
        for precision in ("32", "bf16", "auto")
    )
    assert not torch.equal(full, half)
    assert (full - half).norm() < 0.05 * full.norm()
    assert torch.equal(auto, half if has_native_bf16(torch.device("cpu")) else full)


def test_errors_say_what_to_do(backbone):
    with pytest.raises(ValueError, match="the loader has no images"):
        extract_features(backbone, [], CenterView(24))
    with pytest.raises(ValueError, match="precision is one of auto, 32, bf16, got 'bf61'; did you mean 'bf16'"):
        extract_features(backbone, batches(), CenterView(24), precision="bf61")
    with pytest.raises(ValueError, match="the backbone is on cpu: move it first"):
        extract_features(backbone, batches(), CenterView(24), device="meta")


def test_random_weights_are_seeded_and_leave_the_original_and_the_generator_alone(backbone):
    before, generator = state(backbone), torch.get_rng_state()
    backbone.set_normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    one, same, other = (random_backbone(backbone, seed) for seed in (5, 5, 6))
    assert_equal_states(state(one), state(same))
    assert not torch.equal(one.model.conv1.weight, other.model.conv1.weight)
    assert one.config() == backbone.config()
    assert (one.mean, one.std) == (backbone.mean, backbone.std)
    assert_equal_states(state(backbone), before)
    assert torch.equal(torch.get_rng_state(), generator)


def test_calibrated_statistics_are_those_of_the_images(backbone):
    data = batches(num=12, batch_size=6)
    momentum = backbone.model.bn1.momentum
    backbone.train()
    calibrate_batch_norm(backbone, data, CenterView(24))
    pixels = torch.stack([batch.images.pixels for batch in data]).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    with torch.no_grad():
        maps = [backbone.model.conv1((x - mean) / std) for x in pixels]
    expected = torch.stack([x.mean(dim=(0, 2, 3)) for x in maps]).mean(dim=0)
    assert torch.allclose(backbone.model.bn1.running_mean, expected, atol=1e-5)
    assert backbone.model.bn1.momentum == momentum
    assert all(module.training for module in backbone.modules())


def test_calibration_stops_early_and_leaves_out_single_images(backbone):
    def endless():
        while True:
            yield from batches(num=4, batch_size=4)

    calibrate_batch_norm(backbone, endless(), CenterView(24), max_images=20)
    assert int(backbone.model.bn1.num_batches_tracked) == 5
    calibrate_batch_norm(backbone, batches(num=1), CenterView(24))
    assert not backbone.model.bn1.running_mean.any()


def test_calibration_leaves_a_backbone_without_batch_norm_alone():
    backbone = Backbone("convnext_atto")
    calibrate_batch_norm(backbone, iter(()), CenterView(24))
