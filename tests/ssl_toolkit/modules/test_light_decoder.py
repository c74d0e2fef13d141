"""The light decoder: its shapes, what fills hidden places, and what it refuses."""

import pytest
import torch
from torch.nn import functional as F

from ssl_toolkit.modules import LightDecoder
from ssl_toolkit.modules.visible import VisiblePlaces, only_visible

SIDE, STRIDES = 32, (4, 8, 16)
CHANNELS = {4: 3, 8: 5, 16: 7}


def make_decoder(channels=CHANNELS, width=32):
    torch.manual_seed(0)
    return LightDecoder(channels, width, 3).double()


def make_maps():
    generator = torch.Generator().manual_seed(1)
    return {
        stride: torch.randn(2, channels, SIDE // stride, SIDE // stride, dtype=torch.float64, generator=generator)
        for stride, channels in CHANNELS.items()
    }


def make_places():
    return VisiblePlaces(torch.tensor([[0, 3], [1, 2]]), 2, 16)


def decode(decoder, maps):
    places = make_places()
    with only_visible(places):
        return decoder(maps, places)


def test_it_is_what_its_layers_compute_one_after_the_other():
    decoder, maps, places = make_decoder().eval(), make_maps(), make_places()
    widths, x = {16: 32, 8: 16, 4: 8, 2: 4}, None
    for number, (stride, width) in enumerate(widths.items()):
        if stride in maps:
            level, side = decoder.densify[str(stride)], SIDE // stride
            dense = torch.empty(2, width, side, side, dtype=torch.float64)
            for image in range(2):
                for row in range(side):
                    for column in range(side):
                        seen = maps[stride][image, :, row, column] / (1 + 1e-5) ** 0.5  # running statistics 0 and 1
                        is_seen = places.visible[image, row * 2 // side, column * 2 // side]
                        given = seen if is_seen else level.embedding
                        dense[image, :, row, column] = level.project.weight[:, :, 0, 0] @ given + level.project.bias
            x = dense if x is None else x + dense
        block = decoder.blocks[number]
        x = F.conv_transpose2d(x, block.enlarge.weight, block.enlarge.bias, stride=2, padding=1)
        assert x.shape == (2, width, 2 * SIDE // stride, 2 * SIDE // stride)
        x = block.layers(x)
        assert x.shape[1] == width // 2
    expected = F.conv2d(x, decoder.predict.weight, decoder.predict.bias)
    found = decode(decoder, maps)
    assert found.shape == (2, 3, SIDE, SIDE)
    torch.testing.assert_close(found, expected)


def test_hidden_places_of_its_maps_do_not_matter():
    decoder, maps, places = make_decoder(), make_maps(), make_places()
    others = {s: torch.where(places.mask(SIDE // s), each, torch.rand_like(each) * 9) for s, each in maps.items()}
    assert torch.equal(decode(decoder, others), decode(decoder, maps))


def test_each_resolution_has_an_embedding_that_learns():
    decoder = make_decoder()
    decode(decoder, make_maps()).square().sum().backward()
    for stride, channels in CHANNELS.items():
        embedding = decoder.densify[str(stride)].embedding
        assert embedding.shape == (channels,)
        assert embedding.grad.norm() > 0


def test_it_begins_next_to_the_mean_of_each_patch():
    assert decode(make_decoder(), make_maps()).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("channels", "width", "message"),
    [
        ({12: 4, 6: 4}, 48, r"^a decoder that doubles the resolution needs a stride of a power of two, got 12$"),
        (CHANNELS, 24, r"^model\.decoder_width is 24, expected a multiple of the network's stride, 16$"),
        (CHANNELS, 0, r"^model\.decoder_width is 0, expected a multiple of the network's stride, 16$"),
    ],
)
def test_what_cannot_work_is_refused(channels, width, message):
    with pytest.raises(ValueError, match=message):
        make_decoder(channels, width)
