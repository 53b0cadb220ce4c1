import pytest
import torch

from training.losses import ranking_loss


def test_pairs_are_neighbours_and_the_formula_is_the_papers() -> None:
    scores = torch.tensor([0.2, 0.5, 3.0, 0.0])
    losses = torch.tensor([1.0, 2.0, 0.9, 0.1])
    # (0, 1): l_0 < l_1, so max(0, (0.2 - 0.5) + 1) = 0.7; (2, 3): l_2 > l_3, so max(0, -3 + 1) = 0
    assert ranking_loss(scores, losses, 1.0).item() == pytest.approx(0.35)
    assert ranking_loss(scores, losses, 2.0).item() == pytest.approx((1.7 + 0.0) / 2)


def test_sign_asks_for_larger_scores_where_the_loss_is_larger() -> None:
    losses = torch.tensor([2.0, 1.0])
    right = ranking_loss(torch.tensor([5.0, 0.0]), losses, 1.0)
    wrong = ranking_loss(torch.tensor([0.0, 5.0]), losses, 1.0)
    assert right.item() == 0
    assert wrong.item() == 6
    scores = torch.zeros(2, requires_grad=True)
    ranking_loss(scores, losses, 1.0).backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [-1, 1]  # a step downhill raises the first score and lowers the second


def test_true_losses_are_detached() -> None:
    scores = torch.zeros(4, requires_grad=True)
    losses = torch.tensor([1.0, 2.0, 3.0, 1.0], requires_grad=True)
    ranking_loss(scores, losses, 1.0).backward()
    assert losses.grad is None
    assert scores.grad is not None
    assert scores.grad.abs().sum() > 0


def test_the_last_of_an_odd_batch_is_left_out() -> None:
    scores, losses = torch.tensor([0.2, 0.5, 9.0]), torch.tensor([1.0, 2.0, 5.0])
    assert ranking_loss(scores, losses, 1.0) == ranking_loss(scores[:2], losses[:2], 1.0)


def test_equal_losses_move_nothing() -> None:
    scores = torch.tensor([1.0, -1.0], requires_grad=True)
    ranking_loss(scores, torch.tensor([0.5, 0.5]), 1.0).backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [0, 0]


@pytest.mark.parametrize(("scores", "losses"), [((1,), (1,)), ((4, 1), (4,)), ((3,), (4,))])
def test_refuses_what_has_no_pairs(scores: tuple[int, ...], losses: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one shape"):
        ranking_loss(torch.zeros(scores), torch.zeros(losses), 1.0)
