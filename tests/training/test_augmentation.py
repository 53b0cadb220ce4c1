import torch

from models.card import InputSpec
from training.augmentation import augment

SPEC = InputSpec.model_validate({
    "channels": 1, "height": 32, "width": 32, "intensity": "percentile", "low": 1, "high": 99, "mean": 0.5, "std": 0.25,
    "modalities": [], "body_parts": [], "views": [], "age_years": None, "min_side": 1,
})  # fmt: skip


def gradient(count: int) -> torch.Tensor:
    """Images that rise from the left (0) to the right (1), preprocessed."""
    grey = torch.linspace(0, 1, 32).expand(count, 1, 32, 32)
    return ((grey - SPEC.mean) / SPEC.std).contiguous()


def changed(seed: int, flip: bool, count: int = 64) -> torch.Tensor:
    return augment(gradient(count), SPEC, flip, torch.Generator().manual_seed(seed)) * SPEC.std + SPEC.mean


def test_same_seed_same_images() -> None:
    assert torch.equal(changed(1, True), changed(1, True))
    assert not torch.equal(changed(1, True), changed(2, True))


def test_grey_values_stay_in_range_and_shape() -> None:
    grey = changed(0, True)
    assert grey.shape == (64, 1, 32, 32)
    assert grey.dtype == torch.float32
    assert float(grey.min()) >= -1e-6
    assert float(grey.max()) <= 1 + 1e-6


def test_each_image_is_changed_in_its_own_way() -> None:
    grey = changed(0, False)
    assert len(torch.unique(grey.mean(dim=(1, 2, 3)))) == 64


def rises(grey: torch.Tensor) -> torch.Tensor:
    return grey[..., 24:].mean(dim=(1, 2, 3)) > grey[..., :8].mean(dim=(1, 2, 3))


def test_never_inverted_and_mirrored_only_if_asked() -> None:
    assert bool(rises(changed(0, False)).all())
    mirrored = rises(changed(0, True)).float().mean()
    assert 0.3 < float(mirrored) < 0.7


def test_sharpness_goes_both_ways() -> None:
    torch.manual_seed(0)
    grey = (0.5 + 0.1 * torch.randn(64, 1, 32, 32)).clamp(0, 1)
    out = augment((grey - SPEC.mean) / SPEC.std, SPEC, False, torch.Generator().manual_seed(0)) * SPEC.std
    edges = (out[..., 1:] - out[..., :-1]).abs().mean(dim=(1, 2, 3)) / out.flatten(1).std(dim=1)
    plain = (grey[..., 1:] - grey[..., :-1]).abs().mean() / grey.std()
    assert float(edges.min()) < 0.8 * float(plain)
    assert float(edges.max()) > 0.9 * float(plain)
