import torch

from tests.training import segmenter_drawings as drawings
from training.fit import memory_format
from training.segmenter import SegmenterTraining


def test_only_bfloat16_trains_channels_last_and_its_order_changes_no_gradient() -> None:
    """With float32 torch's backward pass writes beyond its memory there (training.fit.memory_format)."""
    assert memory_format(drawings.config(precision="32-true")) is torch.contiguous_format
    quick = memory_format(drawings.config(precision="bf16-mixed"))
    assert quick is torch.channels_last
    config = drawings.config(precision="bf16-mixed", labels="masks", widths=(16, 32))
    images, labels = torch.rand(4, 3, 32, 32), torch.randint(0, 2, (4, 1, 32, 32), dtype=torch.int8)
    gradients = []
    for order in (torch.contiguous_format, quick):
        torch.manual_seed(0)
        module = SegmenterTraining(config).to(memory_format=order).train()
        module.losses(images.contiguous(memory_format=order), labels, False)[0].backward()  # type: ignore[no-untyped-call]
        gradients.append(torch.cat([value.grad.flatten() for value in module.segmenter.parameters() if value.grad is not None]))
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)
