import numpy as np
import torch
from scipy.spatial.distance import mahalanobis

from models.networks.domain_distance import DomainDistance, stage_statistics


def test_statistics_are_means_and_deviations_of_every_stage() -> None:
    maps = [torch.randn(3, 4, 6, 6), torch.randn(3, 8, 3, 3)]
    found = stage_statistics(maps)
    assert found.shape == (3, 24)
    torch.testing.assert_close(found[:, :4], maps[0].mean(dim=(2, 3)))
    torch.testing.assert_close(found[:, 16:], maps[1].std(dim=(2, 3), correction=0), rtol=1e-4, atol=1e-4)


def test_distance_is_the_mahalanobis_distance_to_the_nearest_centre() -> None:
    random = np.random.default_rng(0)
    root = random.normal(size=(5, 5))
    covariance = root @ root.T + np.eye(5)
    centres = random.normal(size=(2, 5)) * 4
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    module = DomainDistance(torch.from_numpy(whitening), torch.from_numpy(centres @ whitening.T))
    points = random.normal(size=(20, 5)) * 5
    inverse = np.linalg.inv(covariance)
    expected = [min(mahalanobis(point, centre, inverse) for centre in centres) / 5**0.5 for point in points]
    np.testing.assert_allclose(module(torch.from_numpy(points)).numpy(), expected, rtol=1e-6)
    first_only = [mahalanobis(point, centres[0], inverse) / 5**0.5 for point in points]
    assert not np.allclose(first_only, expected)  # control: with one domain forgotten the distances differ


def test_images_of_a_domain_lie_near_one() -> None:
    torch.manual_seed(0)
    module = DomainDistance(torch.eye(200), torch.zeros(1, 200))
    at_home = module(torch.randn(500, 200))
    assert abs(float(at_home.mean()) - 1) < 0.02
    assert float(module(torch.randn(1, 200) + 3)) > 2
