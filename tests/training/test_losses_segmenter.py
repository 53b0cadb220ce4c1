import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from training.losses import dice_losses, edge_loss, pairwise_loss, partial_cross_entropy, point_loss

IGNORE = -1


def test_partial_loss_is_the_mean_over_what_is_labelled() -> None:
    logits = torch.tensor([[[2.0, -1.0, -1.0, 0.5, 9.0]]])
    labels = torch.tensor([[[1, 0, 0, IGNORE, IGNORE]]], dtype=torch.int8)
    positive, negative = math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1))
    assert partial_cross_entropy(logits, labels).item() == pytest.approx((positive + 2 * negative) / 3, rel=1e-5)


def test_all_lines_together_weigh_a_tenth_of_all_points_however_many_pixels_either_has() -> None:
    logits = torch.zeros(1, 1, 6, requires_grad=True)
    labels = torch.tensor([[[1, 0, IGNORE, 0, 0, 0]]], dtype=torch.int8)
    loss = point_loss(logits, labels, 0.1)
    assert loss.item() == pytest.approx(1.1 * math.log(2), rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    point, boundary, ignored, *others = logits.grad[0, 0].tolist()
    assert point == pytest.approx(-0.5)
    assert boundary == pytest.approx(0.1 * 0.5 / 4)  # and they pull in opposite directions
    assert others == [boundary] * 3
    assert ignored == 0


def test_more_pixels_of_line_do_not_outweigh_a_point() -> None:
    logits = torch.tensor([[[0.3, -0.2, -0.2, -0.2]]])
    one, three = torch.tensor([[[1, 0, IGNORE, IGNORE]]]), torch.tensor([[[1, 0, 0, 0]]])
    assert point_loss(logits, one, 0.1).item() == pytest.approx(point_loss(logits, three, 0.1).item(), rel=1e-6)
    assert partial_cross_entropy(logits, one).item() != pytest.approx(partial_cross_entropy(logits, three).item(), rel=1e-2)


@pytest.mark.parametrize("kind", [0, 1])
def test_a_tile_that_has_one_kind_alone_is_compared_with_that(kind: int) -> None:
    loss = point_loss(torch.zeros(1, 2, 2), torch.full((1, 2, 2), kind), 0.1)
    assert loss.item() == pytest.approx((0.1, 1.0)[kind] * math.log(2), rel=1e-5)


@pytest.mark.parametrize("loss", [partial_cross_entropy, partial(point_loss, boundary_weight=0.1)])
def test_loss_of_a_tile_without_labels_is_zero_and_can_be_differentiated(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits = torch.ones(1, 3, 3, requires_grad=True)
    value = loss(logits, torch.full((1, 3, 3), IGNORE))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_edge_loss_is_the_mean_absolute_difference_and_teaches_both_sides() -> None:
    ramp = (0.05 * torch.arange(6.0)).expand(1, 1, 5, 6).clone().requires_grad_()
    edges = torch.zeros(1, 2, 5, 6, requires_grad=True)
    loss = edge_loss(ramp, edges)
    # across: 0.4 in four columns, 0.2 in the two at the border; down: nothing
    assert loss.item() == pytest.approx((4 * 0.4 + 2 * 0.2) / 6 / 2, rel=1e-5)
    loss.backward()
    assert ramp.grad is not None
    assert ramp.grad.any()
    assert edges.grad is not None
    assert edges.grad.any()
    known = torch.zeros(1, 2, 5, 6)
    known[:, 0] = torch.tensor([0.2, 0.4, 0.4, 0.4, 0.4, 0.2])
    assert edge_loss(ramp.detach(), known).item() < 1e-6


def brute_force(p: torch.Tensor, colours: torch.Tensor, radius: int, place: float, colour: float) -> float:
    total, pairs = 0.0, 0
    height, width = p.shape[2:]
    cells = [(y, x) for y in range(height) for x in range(width)]
    for a in cells:
        for b in cells:
            if a != b and max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= radius:
                far = (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
                unlike = float((colours[0, :, a[0], a[1]] - colours[0, :, b[0], b[1]]).square().sum())
                one, two = float(p[0, 0, a[0], a[1]]), float(p[0, 0, b[0], b[1]])
                kernel = math.exp(-far / (2 * place**2) - unlike / (2 * colour**2))
                total += kernel * (one * (1 - two) + two * (1 - one))
                pairs += 1
    return total / pairs


def test_pairwise_loss_is_the_windowed_energy() -> None:
    torch.manual_seed(0)
    p, colours = torch.rand(1, 1, 5, 6), torch.rand(1, 3, 5, 6)
    assert pairwise_loss(p, colours, 2, 1.5, 0.3).item() == pytest.approx(brute_force(p, colours, 2, 1.5, 0.3), rel=1e-4)
    assert pairwise_loss(p, colours, 1, 1.5, 0.3).item() != pytest.approx(brute_force(p, colours, 2, 1.5, 0.3), rel=1e-2)


def test_pairwise_loss_prefers_a_boundary_where_the_colour_changes() -> None:
    colours = torch.zeros(1, 3, 8, 8)
    colours[..., 4:] = 1.0
    right, wrong = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    right[..., 4:], wrong[..., 2:] = 1.0, 1.0
    assert pairwise_loss(right, colours, 2, 2.0, 0.1) < 1e-6 < 1e-2 < pairwise_loss(wrong, colours, 2, 2.0, 0.1)


def test_dice_loss_counts_labelled_pixels_only() -> None:
    labels = torch.tensor([[[1, 1, 0, IGNORE]], [[1, 1, 0, 0]], [[0, 0, 0, 0]], [[0, 0, 0, 0]]])
    foreground = torch.tensor([[[1, 0, 0, 1]], [[1, 1, 1, 1]], [[0, 0, 0, 0]], [[1, 0, 0, 0]]]).bool()
    assert dice_losses(foreground, labels).tolist() == pytest.approx([1 - 2 / 3, 1 - 4 / 6, 0.0, 1.0])
