import pytest
import torch

from models.networks.loss_prediction import LossPrediction


def test_score_is_the_formula_of_the_paper() -> None:
    torch.manual_seed(0)
    module = LossPrediction((4, 8), hidden=5)
    maps = [torch.randn(3, 4, 6, 6), torch.randn(3, 8, 3, 3)]
    hidden = []
    for branch, stage in zip(module.branches, maps, strict=True):
        pooled = stage.sum(dim=(2, 3)) / (stage.shape[2] * stage.shape[3])
        hidden.append((pooled @ branch.weight.T + branch.bias).clamp(min=0))
    expected = torch.cat(hidden, dim=1) @ module.score.weight[0] + module.score.bias[0]
    torch.testing.assert_close(module(maps), expected)
    assert module(maps).shape == (3,)


def test_score_has_no_final_activation() -> None:
    module = LossPrediction((4,), hidden=5)
    with torch.no_grad():
        module.score.weight.zero_()
        module.score.bias.fill_(-3.0)
    assert module([torch.randn(2, 4, 2, 2)]).tolist() == [-3.0, -3.0]


def test_every_stage_counts() -> None:
    torch.manual_seed(0)
    module = LossPrediction((4, 8))
    maps = [torch.rand(1, 4, 2, 2), torch.rand(1, 8, 2, 2)]
    score = module(maps)
    assert not torch.equal(module([maps[0] + 1, maps[1]]), score)
    assert not torch.equal(module([maps[0], maps[1] + 1]), score)


def test_refuses_another_number_of_stages() -> None:
    with pytest.raises(ValueError, match="zip"):
        LossPrediction((4, 8))([torch.randn(1, 4, 2, 2)])
