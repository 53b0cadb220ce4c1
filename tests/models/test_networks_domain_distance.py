import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis

from models.networks.domain_distance import GRID, DomainDistance, ViewDistance, grid_statistics, stage_statistics


def test_statistics_are_means_and_deviations_of_every_stage() -> None:
    maps = [torch.randn(3, 4, 6, 6), torch.randn(3, 8, 3, 3)]
    found = stage_statistics(maps)
    assert found.shape == (3, 1, 24)
    torch.testing.assert_close(found[:, 0, :4], maps[0].mean(dim=(2, 3)))
    torch.testing.assert_close(found[:, 0, 16:], maps[1].std(dim=(2, 3), correction=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [2, 6, 8, 33])
def test_grid_statistics_are_the_means_of_each_cell_of_all_but_the_last_stage(side: int) -> None:
    maps = [torch.randn(3, 4, 32, 16), torch.randn(3, 8, side, side), torch.randn(3, 16, 4, 4)]
    found = grid_statistics(maps)
    assert found.shape == (3, GRID**2, 12)
    for part, stage in zip(found.split([4, 8], dim=2), maps, strict=False):
        expected = torch.nn.functional.adaptive_avg_pool2d(stage, GRID).flatten(2).transpose(1, 2)
        torch.testing.assert_close(part, expected)


def test_only_the_grid_knows_what_lies_where() -> None:
    maps = [torch.randn(1, 4, 16, 16), torch.randn(1, 8, 8, 8)]
    turned = [stage.flip(2) for stage in maps]
    torch.testing.assert_close(stage_statistics(turned), stage_statistics(maps))
    assert not torch.allclose(grid_statistics(turned), grid_statistics(maps), atol=0.01)


def test_distance_is_the_mahalanobis_distance_to_the_nearest_centre() -> None:
    random = np.random.default_rng(0)
    root = random.normal(size=(5, 5))
    covariance = root @ root.T + np.eye(5)
    centres = random.normal(size=(2, 5)) * 4
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    module = DomainDistance(
        torch.from_numpy(whitening)[None],
        torch.from_numpy((centres - centres[0]) @ whitening.T)[:, None],
        torch.from_numpy(centres[:1]),
    )
    points = random.normal(size=(20, 5)) * 5
    inverse = np.linalg.inv(covariance)
    expected = [min(mahalanobis(point, centre, inverse) for centre in centres) / 5**0.5 for point in points]
    np.testing.assert_allclose(module(torch.from_numpy(points)[:, None]).numpy(), expected, rtol=1e-6)
    first_only = [mahalanobis(point, centres[0], inverse) / 5**0.5 for point in points]
    assert not np.allclose(first_only, expected)  # control: with one domain forgotten the distances differ


def test_positions_are_averaged_before_the_nearest_domain_is_taken() -> None:
    module = DomainDistance(torch.eye(1).repeat(2, 1, 1), torch.tensor([[[0.0], [0.0]], [[4.0], [4.0]]]), torch.zeros(2, 1))
    mixed = torch.tensor([[[0.0], [4.0]]])  # one position of either domain: near neither as a whole
    assert float(module(mixed)) == pytest.approx(8**0.5)


def test_images_of_a_domain_lie_near_one() -> None:
    torch.manual_seed(0)
    module = DomainDistance(torch.eye(50).repeat(4, 1, 1), torch.zeros(1, 4, 50), torch.zeros(4, 50))
    at_home = module(torch.randn(500, 4, 50))
    assert abs(float(at_home.mean()) - 1) < 0.02
    assert float(module(torch.randn(1, 4, 50) + 3)) > 2


def test_a_view_is_far_by_either_distance() -> None:
    maps = [torch.rand(2, 3, 8, 8), torch.rand(2, 4, 4, 4)]
    whole = DomainDistance(torch.eye(14)[None], torch.zeros(1, 1, 14), torch.zeros(1, 14))
    grid = DomainDistance(torch.eye(3).repeat(GRID**2, 1, 1), torch.zeros(1, GRID**2, 3), torch.zeros(GRID**2, 3))
    first, second = whole(stage_statistics(maps)), grid(grid_statistics(maps))
    torch.testing.assert_close(ViewDistance(whole, grid)(maps), torch.sqrt((first**2 + second**2) / 2))
