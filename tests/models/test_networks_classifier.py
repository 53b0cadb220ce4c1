import torch
from torch import nn

from models.networks.classifier import Classifier, ResidualBlock


def network(channels: int = 1) -> Classifier:
    torch.manual_seed(0)
    return Classifier(channels, 3, (4, 8, 16), blocks=2, dropout=0.5).eval()


def test_stages_halve_the_image_and_have_the_widths_asked_for() -> None:
    maps = network().stage_maps(torch.randn(2, 1, 32, 48))
    assert [tuple(stage.shape) for stage in maps] == [(2, 4, 16, 24), (2, 8, 8, 12), (2, 16, 4, 6)]
    assert all(bool((stage >= 0).all()) for stage in maps)


def test_mean_of_a_heatmap_is_the_logit_of_its_class() -> None:
    model = network(3)
    maps = model.stage_maps(torch.randn(4, 3, 32, 32))
    logits = model.classify(model.pool(maps))
    heatmap = model.heatmap(maps)
    assert heatmap.shape == (4, 3, 4, 4)
    torch.testing.assert_close(heatmap.mean(dim=(2, 3)), logits, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(heatmap[:, 0].mean(dim=(1, 2)), logits[:, 1])  # control: another class's logit


def test_heatmap_is_where_the_evidence_is() -> None:
    model = network()
    maps = model.stage_maps(torch.zeros(1, 1, 32, 32))
    last = torch.zeros_like(maps[-1])
    last[0, 5, 1, 2] = 1.0
    heatmap = model.heatmap([last]) - model.head.bias[None, :, None, None]
    assert torch.nonzero(heatmap[0, 0]).tolist() == [[1, 2]]
    torch.testing.assert_close(heatmap[0, 0, 1, 2], model.head.weight[0, 5])


def test_forward_is_stages_pool_head() -> None:
    model = network()
    image = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(model(image), model.classify(model.pool(model.stage_maps(image))))
    assert not torch.equal(model.train()(image), model(image))  # dropout works in training only


def test_block_projects_only_where_it_must() -> None:
    assert isinstance(ResidualBlock(4, 4, 1).shortcut, nn.Identity)
    assert not isinstance(ResidualBlock(4, 8, 1).shortcut, nn.Identity)
    assert not isinstance(ResidualBlock(4, 4, 2).shortcut, nn.Identity)


def test_shipped_size_stays_below_a_million_parameters() -> None:
    model = Classifier(1, 2, (16, 32, 64, 128), blocks=2, dropout=0.2)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
