import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from training.metrics import METRICS, aurc, auroc, bootstrap, ece, share


def test_auroc_equals_scikit_learns_with_ties() -> None:
    random = np.random.default_rng(0)
    positive = random.random(200) < 0.3
    scores = np.round(random.normal(size=200) + positive, 1)
    assert auroc(positive, scores) == pytest.approx(roc_auc_score(positive, scores))
    assert auroc(positive, -scores) == pytest.approx(1 - auroc(positive, scores))
    assert np.isnan(auroc(np.ones(3, dtype=bool), np.zeros(3)))


def test_ece_of_a_known_case() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    assert ece(confidence, np.array([True, True, True, False])) == pytest.approx((2 * 0.05 + 2 * 0.05) / 4)
    assert ece(np.ones(5), np.ones(5, dtype=bool)) == 0
    assert ece(np.ones(5), np.zeros(5, dtype=bool)) == 1


def test_aurc_of_a_known_case() -> None:
    wrong = np.array([False, True, False, True])
    assert aurc(wrong, np.array([0.1, 0.9, 0.2, 0.8])) == pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4)
    assert aurc(wrong, np.array([0.9, 0.1, 0.8, 0.2])) == pytest.approx((1 + 1 + 2 / 3 + 2 / 4) / 4)  # the sign turned round


def test_share() -> None:
    assert share(np.array([True, False, True]), np.array([True, True, False])) == 0.5
    assert np.isnan(share(np.array([True]), np.array([False])))


def table(count: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    positive = random.random(count) < 0.5
    probability = 1 / (1 + np.exp(-random.normal(size=count) - 2 * positive + 1))
    called = probability >= 0.5
    return {
        "positive": positive, "probability": probability, "called": called, "wrong": called != positive,
        "confidence": np.maximum(probability, 1 - probability), "correct": called == positive,
        "true_loss": -np.log(np.where(positive, probability, 1 - probability)), "predicted_loss": random.random(count),
        "predicted_loss_unseen": random.random(count),
        "loss_score": random.random(count), "entropy": random.random(count), "domain_distance": random.random(count),
        "review": probability > 0.9, "refuse": probability > 0.95,
    }  # fmt: skip


def test_every_metric_is_a_number() -> None:
    columns = table(100, 0)
    for name, metric in METRICS.items():
        assert 0 <= metric(columns) < 10, name


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = METRICS["accuracy"](table(200_000, 99))
    inside = 0
    for seed in range(60):
        interval = bootstrap(["accuracy"], table(150, seed), [str(index) for index in range(150)], replicates=200)["accuracy"]
        assert interval is not None
        inside += interval[0] <= truth <= interval[1]
    assert 50 <= inside <= 60


def test_patients_not_images_are_resampled() -> None:
    columns = {name: np.repeat(column, 10) for name, column in table(40, 0).items()}
    by_patient = bootstrap(["accuracy"], columns, [str(index // 10) for index in range(400)], 300)["accuracy"]
    by_image = bootstrap(["accuracy"], columns, [str(index) for index in range(400)], 300)["accuracy"]
    assert by_patient is not None
    assert by_image is not None
    assert by_patient[1] - by_patient[0] > 2 * (by_image[1] - by_image[0])


def test_same_patients_same_interval_and_none_where_undefined() -> None:
    columns, patients = table(50, 0), [str(index) for index in range(50)]
    assert bootstrap(["auroc"], columns, patients, 50) == bootstrap(["auroc"], columns, patients, 50)
    columns["positive"] = np.arange(50) == 0
    assert bootstrap(["auroc"], columns, patients, 50)["auroc"] is None
