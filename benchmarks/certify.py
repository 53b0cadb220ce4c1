"""How much narrower are a site's figures for the predictions, and do the intervals hold? Replays on answers with known labels.

python benchmarks/certify.py --data FOLDER --scale small --work runs/benchmarks
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.simple_features import head, load
from models.card import Finding, ModelCard, OutputSpec, Triage
from models.certificate import Answers, View, rate_terms, triage
from models.estimates import POWERED_FROM, Sample, mean, rate
from models.imaging import read_image
from models.predictor import Predictor
from models.sampling import by_doubt, draw, even
from models.triage import judge
from models.uncertainty import entropy
from training.config import RunConfig
from training.data import read_manifest, split_of

Row = dict[str, Any]
RESAMPLES = {"smoke": 8, "small": 1000, "paper": 5000}
LABELS = (50, 100, 200)
IMAGES = 2000
"""Of a replayed site: drawn with replacement from those of the data set, whose figures are then the truth."""
ARMS = ("random", "by doubt")
RATES = ("error", "sensitivity", "specificity")
ACCEPTED_ERROR = {"kermany_guangzhou": 0.05, "nih_chestxray": 0.2, "photo": 0.1, "sketch": 0.1, "useless": 0.2}
PAGE = report.ROOT / "docs" / "certify.md"


@dataclass(frozen=True)
class Population:
    """Images of one site with a model's answers and their labels."""

    name: str
    card: ModelCard
    answers: Answers
    labels: NDArray[np.int64]


def xrays(data: Path, cache: Path, package: Path, every: int) -> list[Population]:
    """Return both hospitals of the shipped X-ray model: one in ``every`` image of patients that its weights have not seen."""
    predictor = Predictor.load(package, threads=1)
    config = RunConfig.model_validate(predictor.card.training.config)
    rows = [
        row
        for row in read_manifest(data / "cxr", config.domains, config.classes).rows
        if split_of(row.patient, config) != "train"
    ]
    file = cache / f"certify-{predictor.sha256[:12]}-{every}.json"
    if not file.exists():
        found = []
        for row in rows[::every]:
            image = read_image(row.image.read_bytes(), target=(predictor.card.input.height, predictor.card.input.width))
            (prediction,) = predictor.predict([image])
            found.append({
                "domain": row.domain, "label": row.label, "probabilities": prediction.probabilities,
                "predicted_loss": prediction.predicted_loss, "loss_percentile": prediction.loss_percentile,
                "reasons": judge(prediction, predictor.card.triage).reasons,
            })  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
    kept = json.loads(file.read_text())
    populations = []
    for domain in config.domains:
        mine = [row for row in kept if row["domain"] == domain]
        labels = np.array([row["label"] for row in mine])
        populations.append(Population(domain, predictor.card, Answers.of(mine, predictor.card), labels))
    home = populations[-1]
    shuffled = np.random.default_rng(0).permutation(home.labels)
    return [*populations, Population("useless", home.card, home.answers, shuffled)]


def drawings(data: Path, cache: Path, most: int) -> list[Population]:
    """Return two kinds of pictures of `pacs` with the answers of a simple model that has seen only the other three."""
    features, labels, domains, classes = load("pacs", data, cache, most)
    finding = Finding(label="person", operating_point=0.5, rule="given")
    output = OutputSpec(classes=classes, findings=(finding,))
    limits = Triage(review_loss_percentile=95, review_domain_percentile=95, refuse_domain_distance=10)
    card = ModelCard.model_construct(output=output, triage=limits)  # only what answers need: no model ships
    populations = []
    for name in ("photo", "sketch"):
        target = domains == name
        chances = head().fit(features[~target], labels[~target]).predict_proba(features[target])
        doubt = entropy(chances)
        rank = 100 * np.argsort(np.argsort(doubt)) / len(doubt)
        answers = Answers(chances, doubt, rank, np.zeros(len(doubt), dtype=np.bool_))
        populations.append(Population(name, card, answers, labels[target]))
    return populations


def _site(population: Population, random: np.random.Generator, labels: int, arm: str) -> tuple[NDArray[np.int64], Sample]:
    images = random.integers(0, len(population.labels), IMAGES)
    answers = population.answers[images]
    view = View.of(population.card.output.findings[0], population.card, answers)
    chances = even(IMAGES, labels) if arm == "random" else by_doubt(answers.probabilities, view.called, view.kind, labels)
    index = draw(chances, int(random.integers(2**31)))
    return images, Sample(index, chances[index])


def correlation(population: Population, name: str) -> tuple[float, float]:
    """Return the true figure of a population, and the correlation of its terms and their predictions."""
    count = len(population.labels)
    view = View.of(population.card.output.findings[0], population.card, population.answers)
    everyone = Sample(np.arange(count), np.ones(count))
    hits, among, expected_hits, expected_among = rate_terms(view, population.labels == view.kind, everyone)[name]
    truth = float(hits.sum() / among.sum())
    terms, guesses = hits - truth * among, expected_hits - truth * expected_among
    return truth, float(np.corrcoef(terms, guesses)[0, 1]) if terms.std() > 0 and guesses.std() > 0 else 0.0


def replay(population: Population, arm: str, labels: int, resamples: int) -> list[Row]:
    """Return a row for every figure: how often its interval holds, and how wide it is."""
    random = np.random.default_rng(labels)
    finding, card = population.card.output.findings[0], population.card
    truths = {name: correlation(population, name) for name in RATES}
    everything = population.answers.losses(population.labels)
    truths["loss"] = float(everything.mean()), float(np.corrcoef(everything, population.answers.predicted_loss)[0, 1])
    positive = float((population.labels == card.output.classes.index(finding.label)).mean())
    share = {"error": 1.0, "sensitivity": positive, "specificity": 1 - positive}
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in truths}
    for number in range(resamples):
        images, sample = _site(population, random, labels, arm)
        answers, own = population.answers[images], population.labels[images[sample.index]]
        view = View.of(finding, card, answers)
        every = rate_terms(view, own == view.kind, sample)
        pairs = {name: [rate(*every[name], sample, powered=use) for use in (True, False)] for name in RATES}
        if number < resamples // 4:  # resampled itself, so that it costs a hundred times what a rate does
            losses = everything[images[sample.index]]
            pairs["loss"] = [mean(losses, answers.predicted_loss, sample, powered=use, seed=number) for use in (True, False)]
        for name, (powered, alone) in pairs.items():
            if powered is not None and alone is not None:
                truth = truths[name][0]
                found[name].append((
                    powered.low <= truth <= powered.high, alone.low <= truth <= alone.high, powered.high - powered.low,
                    alone.high - alone.low,
                ))  # fmt: skip
    rows = []
    for name, values in found.items():
        if not values:  # no resample had such a label
            continue
        held, alone_held, width, alone_width = np.array(values, dtype=np.float64).mean(axis=0)
        truth, rho = truths[name]
        events = labels * share[name] * min(truth, 1 - truth) if name in share else float(labels)
        rows.append({
            "site": population.name, "arm": arm, "labels": labels, "figure": name, "truth": truth, "rho": rho, "n": len(values),
            "events": float(events), "coverage": float(held), "coverage_alone": float(alone_held), "width": float(width),
            "width_alone": float(alone_width), "ratio": float(width / alone_width), "expected": float(np.sqrt(1 - rho**2)),
        })  # fmt: skip
    return rows


def promises(population: Population, labels: int, resamples: int) -> Row:
    """Return how often an error among accepted images is promised, and how often the promise is broken."""
    random = np.random.default_rng(labels)
    finding, card = population.card.output.findings[0], population.card
    whole = View.of(finding, card, population.answers)
    wrong = whole.called != (population.labels == whole.kind)
    error = ACCEPTED_ERROR[population.name]
    made = broken = 0
    shares = []
    for _ in range(resamples):
        images, sample = _site(population, random, labels, "random")
        answers, own = population.answers[images], population.labels[images[sample.index]]
        site = triage(View.of(finding, card, answers), answers, own, sample, card, 0, error)["site"]
        if site is not None:
            made += 1
            shares.append(site["accepted"])
            kept = (population.answers.loss_percentile < site["limit"]) & ~population.answers.held_back
            broken += wrong[kept].mean() > error
    return {
        "site": population.name, "promise": error, "labels": labels, "n": resamples, "error": float(wrong.mean()),
        "made": made / resamples, "broken": broken / resamples, "accepted": float(np.mean(shares)) if shares else 0.0,
    }  # fmt: skip


def goals_of(rows: list[Row]) -> list[Row]:
    """Return the goals, met or not."""
    rates = [row for row in rows if row.get("figure") in RATES]
    losses = [row for row in rows if row.get("figure") == "loss"]
    near = [row for row in rates if row["site"] != "useless" and row["arm"] == "random"]
    told = [row for row in near if row["events"] >= 2 * POWERED_FROM]
    plain = {(row["site"], row["labels"], row["figure"]): row["width_alone"] for row in rates if row["arm"] == "random"}
    narrower = max(1 - row["width"] / plain[row["site"], row["labels"], row["figure"]] for row in rates)
    wider = max(row["ratio"] for row in rates if row["site"] == "useless") - 1
    kept = min(1 - row["broken"] for row in rows if "broken" in row)
    values: list[tuple[str, float, float]] = [
        ("share of intervals of rates that hold, smallest row", min(row["coverage"] for row in rates), 0.93),
        ("share of intervals of rates that do not, smallest row", min(1 - row["coverage"] for row in rates), 0.03),
        ("share of intervals of the loss that hold, smallest row", min(row["coverage"] for row in losses), 0.93),
        ("sqrt(1 - rho^2) over the width ratio, smallest row", min(row["expected"] / row["ratio"] for row in near), 0.9),
        ("the same, of rows with 20 hits and 20 misses", min((row["expected"] / row["ratio"] for row in told), default=0.0), 0.9),
        ("narrower than random labels alone, largest row", narrower, 0.2),
        ("1 - what useless predictions widen, largest row", 1 - wider, 0.95),
        ("promises of an error that are kept or not made, smallest row", kept, 0.95),
    ]
    return [report.goal(name, float(value), at_least) for name, value, at_least in values]


def tables(rows: list[Row]) -> str:
    """Return what goes into the page."""
    shown = [row for row in rows if row.get("labels") == 100 and "figure" in row]
    plain = {(row["site"], row["figure"]): row["width_alone"] for row in shown if row["arm"] == "random"}
    figures = report.markdown(
        ["site", "drawn", "figure", "truth", "rho", "interval holds", "width", "over the labels' alone", "sqrt(1 - rho^2)",
         "over random labels alone"],
        [
            [row["site"], row["arm"], row["figure"], f"{row['truth']:.3f}", f"{row['rho']:.2f}", f"{row['coverage']:.3f}",
             f"{row['width']:.3f}", f"{row['ratio']:.2f}", f"{row['expected']:.2f}",
             f"{row['width'] / plain[row['site'], row['figure']]:.2f}"]
            for row in shown
        ],
    )  # fmt: skip
    promised = report.markdown(
        ["site", "labels", "error of all", "promised among accepted", "promise made", "accepted then", "broken"],
        [
            [row["site"], row["labels"], f"{row['error']:.3f}", row["promise"], f"{row['made']:.2f}", f"{row['accepted']:.2f}",
             f"{row['broken']:.3f}"]
            for row in rows if "broken" in row
        ],
    )  # fmt: skip
    return f"{figures}\n\n{promised}"


def plot(rows: list[Row], axes: Any) -> None:
    """Draw how much narrower intervals are against the correlation."""
    grid = np.linspace(0, 0.95, 50)
    axes.plot(grid, np.sqrt(1 - grid**2), color="grey", label="sqrt(1 - rho^2)")
    for figure in (*RATES, "loss"):
        chosen = [row for row in rows if row.get("figure") == figure and row["arm"] == "random"]
        axes.plot([abs(row["rho"]) for row in chosen], [row["ratio"] for row in chosen], "o", alpha=0.7, label=figure)
    axes.set(xlabel="correlation of figure and prediction", ylabel="width over the labels' alone", ylim=(0, 1.2))
    axes.legend()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with cxr and pacs")
    parser.add_argument("--scale", choices=tuple(RESAMPLES), required=True)
    parser.add_argument("--work", type=Path, required=True, help="where predictions are kept")
    parser.add_argument("--model", type=Path, default=report.ROOT / "models" / "zoo" / "cxr-pneumonia")
    options = parser.parse_args()
    resamples = RESAMPLES[options.scale]
    cache = options.work / "cache"
    most, every = (1500, 6) if options.scale == "smoke" else (9991, 1)
    rows: list[Row] = []
    for population in xrays(options.data, cache, options.model, every) + drawings(options.data, cache, most):
        for labels in LABELS:
            measured = [row for arm in ARMS for row in replay(population, arm, labels, resamples)]
            rows += [*measured, promises(population, labels, resamples)]
            print(population.name, labels, " ".join(f"{row['coverage']:.3f}" for row in measured), flush=True)
    goals = goals_of(rows)
    file = report.write("certify", options.scale, LABELS, rows, goals)
    report.plot(file, lambda axes: plot(rows, axes))
    if options.scale == "small":
        report.fill(PAGE, "certify", f"{tables(rows)}\n\n{report.verdicts(goals)}")
    print(file)


if __name__ == "__main__":
    main()
