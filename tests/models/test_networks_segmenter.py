import pytest
import torch
from torch import Tensor, nn

from models.networks.normalization import BatchInstanceNorm2d, use_batch_instance
from models.networks.pseudo_edge import PseudoEdge, sobel
from models.networks.segmenter import Segmenter


def network(widths: tuple[int, ...] = (4, 8, 16)) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(3, widths, blocks=2).eval()


def test_maps_halve_and_the_logits_have_the_images_size() -> None:
    model = network()
    maps = model.stage_maps(torch.randn(2, 3, 32, 48))
    assert [tuple(stage.shape) for stage in maps] == [(2, 4, 16, 24), (2, 8, 8, 12), (2, 16, 4, 6)]
    assert model.decode(maps, (32, 48)).shape == (2, 1, 32, 48)
    assert model.pool(maps).shape == (2, 16)
    assert model(torch.randn(1, 3, 37, 51)).shape == (1, 1, 37, 51)  # a size that no power of two divides
    assert network((4,))(torch.randn(1, 3, 32, 32)).shape == (1, 1, 32, 32)


def test_every_stage_takes_part_in_the_logits() -> None:
    model = network()
    maps = model.stage_maps(torch.randn(1, 3, 32, 32))
    whole = model.decode(maps, (32, 32))
    for index in range(3):
        without = [torch.zeros_like(stage) if each == index else stage for each, stage in enumerate(maps)]
        assert not torch.allclose(model.decode(without, (32, 32)), whole, atol=1e-5), index
    assert torch.equal(model.decode(list(maps), (32, 32)), whole)  # control


def test_logit_stands_where_its_pixel_is() -> None:
    model = network()
    image = torch.zeros(1, 3, 64, 64)
    ground = model(image)
    image[:, :, 40:44, 12:16] = 3.0
    change = (model(image) - ground).abs()[0, 0]
    row, column = divmod(int(change.argmax()), 64)
    assert 34 <= row <= 49
    assert 6 <= column <= 21


def test_batch_instance_normalization_replaces_every_layer_of_encoder_and_decoder() -> None:
    model = network()
    image = torch.randn(2, 3, 32, 32)
    before = model(image)
    layers = sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    assert use_batch_instance(model) == layers == 1 + 2 * 6 + 2 + 3  # stem, blocks, two projections, pyramid
    assert sum(isinstance(layer, BatchInstanceNorm2d) for layer in model.modules()) == layers
    torch.testing.assert_close(model(image), before, rtol=1e-4, atol=1e-5)


def test_shipped_size_stays_below_a_million_parameters() -> None:
    assert sum(parameter.numel() for parameter in Segmenter(3, (16, 32, 64, 128), 2).parameters()) < 1_000_000


def test_sobel_of_a_ramp_is_eight_times_its_slope_along_its_axis() -> None:
    across = (0.05 * torch.arange(10.0)).expand(1, 1, 8, 10)
    edges = sobel(across)
    assert edges.shape == (1, 2, 8, 10)
    torch.testing.assert_close(edges[0, 0, :, 1:-1], torch.full((8, 8), 0.4))
    torch.testing.assert_close(edges[0, 1], torch.zeros(8, 10))
    down = sobel(-across.transpose(2, 3))
    torch.testing.assert_close(down[0, 1, 1:-1], torch.full((8, 8), -0.4))  # signed, and y is the second channel
    torch.testing.assert_close(down[0, 0], torch.zeros(10, 8))


def test_a_flat_map_has_no_edge_not_even_at_the_border() -> None:
    assert sobel(torch.full((1, 1, 6, 6), 0.7)).abs().max() < 1e-6
    assert sobel(torch.nn.functional.pad(torch.ones(1, 1, 4, 4), (1, 1, 1, 1))).abs().max() == 4  # control: a step of 1


def test_edges_are_the_shallow_networks_times_the_attention() -> None:
    torch.manual_seed(0)
    both = PseudoEdge(3, 8, (4, 8)).eval()
    image = torch.randn(2, 3, 24, 24)
    assert both.attention is not None
    share = torch.sigmoid(both.attention(image))
    torch.testing.assert_close(both(image), both.edges(image) * share)
    assert both(image).shape == (2, 2, 24, 24)
    assert not torch.allclose(both(image), both.edges(image))
    alone = PseudoEdge(3, 8, ()).eval()
    assert alone.attention is None
    torch.testing.assert_close(alone(image), alone.edges(image))
    assert bool((both(image) < 0).any())  # edges have a sign
    assert bool((both(image) > 0).any())


def test_edge_network_is_the_papers() -> None:
    convolutions = [layer for layer in PseudoEdge(3, 64, ()).edges if isinstance(layer, nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels, layer.kernel_size) for layer in convolutions] == [
        (3, 64, (3, 3)), (64, 64, (3, 3)), (64, 64, (3, 3)), (64, 2, (3, 3)),
    ]  # fmt: skip


@pytest.mark.parametrize("distance", [4, 5])
def test_edge_network_sees_four_pixels_far(distance: int) -> None:
    edges = PseudoEdge(3, 8, ()).eval()
    image = torch.zeros(1, 3, 21, 21)
    changed = image.clone()
    changed[:, :, 10, 10 + distance] = 1.0

    def at_centre(picture: Tensor) -> Tensor:
        found: Tensor = edges(picture)
        return found[:, :, 10, 10]

    assert torch.equal(at_centre(image), at_centre(changed)) == (distance > 4)
