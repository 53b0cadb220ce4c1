"""Does a doubt find the errors on a domain that was never seen? From the checkpoints that generalization.py leaves.

python benchmarks/doubt.py --data FOLDER --scale small --work runs/benchmarks
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import report
from benchmarks.domain_training import Method, Recipe, outputs
from benchmarks.domains import SOURCES, Domains, load
from benchmarks.doubt_scores import Floats, alarm, judge, mahalanobis, mc_dropout, together, vim
from benchmarks.doubt_siblings import BASE, LEFT_OUT, held_out, isotonic, said_at_home, temperature_of, trained
from benchmarks.generalization import MOST, PAGE, RECIPES, SEEDS, Cell, interval
from models.networks.domain_distance import ViewDistance
from models.networks.loss_prediction import LossPrediction
from models.uncertainty import entropy, softmax
from training.calibrate import cross_entropy
from training.export import fit_distance
from training.held_out import fit_loss_prediction
from training.metrics import auroc

JOINT = Method(strong=True, joint=True)
SERVED = "predicted loss and domain distance"
COMPARATORS = ("entropy", "MC dropout", "Mahalanobis", "ViM")
OF_CELL = (
    "error",
    "unseen_auroc",
    "true_mean",
    "predicted_mean",
    "entropy_mean",
    "unseen_mean",
    "true_home",
    "predicted_home",
    "alarm_power",
    "alarm_false",
)
WAYS = {
    "predicted_mean": "predicted loss, unit from home",
    "entropy_mean": "softmax's own (its entropy)",
    "true_home": "what it is at home",
    "unseen_mean": "entropy, unit from held-out errors",
}
"""Of saying what the mean loss on an unseen domain will be, by their names in the lines of the cells."""
GAP = "gap_of_means"
SCANS = 50
TRIALS = {"smoke": 4, "small": 200, "paper": 1000}
HEAD_STEPS = {"smoke": 5, "small": 500, "paper": 2000}


def means(stages: list[Floats]) -> list[Tensor]:
    """Return the channel means, shapes (N, C_i), as tensors: all that a loss prediction module sees of a map."""
    return [torch.from_numpy(part) for part in stages]


@torch.no_grad()
def predict(head: LossPrediction, stages: list[Floats]) -> NDArray[np.float32]:
    """Return the loss scores (N,)."""
    return np.asarray(head([part[:, :, None, None] for part in means(stages)]).numpy())


def run_cell(cell: Cell, data: Domains, recipe: Recipe, scale: str, folder: Path) -> dict[str, Any]:
    """Return the line of one data set, target and seed: every doubt judged on the target."""
    started = time.process_time()
    train, validation, target = data.split(cell.target, cell.seed)
    network, _ = trained(data, cell, recipe, folder, train)
    logits, stages, statistics = outputs(network, data.images)
    features = stages[-1]
    weight, bias = network.head.weight.detach().numpy(), network.head.bias.detach().numpy()
    temperature = temperature_of(logits[validation], data.labels[validation])
    losses = cross_entropy(logits, data.labels, temperature)
    wrong = logits.argmax(1) != data.labels

    def at(indices: NDArray[np.int64]) -> list[Floats]:
        return [part[indices] for part in stages]

    siblings = held_out(data, train, validation, recipe, cell.seed, folder)
    steps = HEAD_STEPS[scale]
    head = fit_loss_prediction(means(at(train)), torch.from_numpy(siblings.losses), 1.0, cell.seed, steps)
    own_losses = torch.from_numpy(cross_entropy(logits[validation], data.labels[validation], 1.0))
    own = fit_loss_prediction(means(at(validation)), own_losses, 1.0, cell.seed, steps)
    names = [str(name) for name in data.domains[train]]
    distance = ViewDistance(*(fit_distance(part[train], names) for part in statistics))
    with torch.no_grad():
        far = distance.of(*map(torch.from_numpy, statistics)).numpy()
    loss = predict(head, stages)
    doubts = {
        SERVED: together(loss[target], far[target]),
        "predicted loss, held-out errors": loss[target],
        "predicted loss, validation errors": predict(own, at(target)),
        "domain distance": far[target],
        "entropy": entropy(softmax(logits[target], 1.0)),
        "MC dropout": mc_dropout(features[target], weight, bias, recipe.dropout, 20, cell.seed),
        "Mahalanobis": mahalanobis(features[train], data.labels[train], features[target]),
        "ViM": vim(features[train], logits[train], features[target], logits[target], weight, bias),
    }
    judged = {name: judge(wrong[target], losses[target], doubt) for name, doubt in doubts.items()}
    judged["predicted loss, joint (its own network)"] = _joint(cell, data, recipe, folder, train, target)
    both = np.concatenate([validation, target])
    unit = isotonic(loss[validation], losses[validation])
    expected = entropy(softmax(logits[target], temperature))
    return {
        "key": cell.key, "data": cell.data, "target": cell.target, "seed": cell.seed, "siblings": siblings.how, "doubts": judged,
        "error": float(wrong[target].mean()), "n": len(target), "unseen_auroc": auroc(np.isin(both, target), far[both]),
        "true_mean": float(losses[target].mean()), "predicted_mean": float(unit.predict(loss[target]).mean()),
        "entropy_mean": float(expected.mean()), "unseen_mean": siblings.said(expected),
        "true_home": float(losses[validation].mean()),
        "predicted_home": said_at_home(loss[validation], losses[validation], data.patients[validation], cell.seed),
        **site_alarm(data, features, validation, target, TRIALS[scale], cell.seed),
        "cpu_seconds": round(time.process_time() - started, 1),
    }  # fmt: skip


def _joint(
    cell: Cell, data: Domains, recipe: Recipe, folder: Path, train: NDArray[np.int64], target: NDArray[np.int64]
) -> dict[str, float]:
    network, head = trained(data, Cell(cell.data, cell.target, JOINT, cell.seed), recipe, folder, train)
    logits, stages, _ = outputs(network, data.images[target])
    labels = data.labels[target]
    entropies = judge(logits.argmax(1) != labels, cross_entropy(logits, labels, 1.0), entropy(softmax(logits, 1.0)))
    found = judge(logits.argmax(1) != labels, cross_entropy(logits, labels, 1.0), predict(head, stages))
    accuracy = float((logits.argmax(1) == labels).mean())
    return found | {"accuracy": accuracy, "entropy_error_auroc": entropies["error_auroc"]}


def site_alarm(
    data: Domains, features: Floats, validation: NDArray[np.int64], target: NDArray[np.int64], trials: int, seed: int
) -> dict[str, Any]:
    """Return how often samples of the unseen domain, and of the known ones, raise the alarm.

    In every trial a random half of a domain's validation images is what samples are compared with, and the other half is where
    samples that must raise no alarm come from. Domains of few images are left out, unless all are.
    """
    random = np.random.default_rng(seed)
    parts = [validation[data.domains[validation] == name] for name in np.unique(data.domains[validation])]
    parts = [part for part in parts if len(part) >= 2 * SCANS] or [max(parts, key=len)]
    size = min(SCANS, *(len(part) // 2 for part in parts))
    power, false = [], []
    for trial in range(trials):
        orders = [random.permutation(part) for part in parts]
        known = [features[order[len(order) // 2 :]] for order in orders]
        new = random.choice(target, min(SCANS, len(target)), replace=False)
        power.append(alarm(known, features[new], random))
        same = orders[trial % len(parts)]
        false.append(alarm(known, features[same[: len(same) // 2][:size]], random))
    return {
        "alarm_power": float(np.mean(power)), "alarm_false": float(np.mean(false)), "alarm_known": len(parts),
        "alarm_false_scans": size,
    }  # fmt: skip


def cells(scale: str) -> list[Cell]:
    """Return all cells of a scale, one seed of everything before the next."""
    seeds, most = (SEEDS[:1], 1) if scale == "smoke" else (SEEDS, None)
    return [
        Cell(name, target, BASE, seed)
        for seed in seeds
        for name in ("cxr", "wbc", "pacs")
        for target in SOURCES[name].targets[:most]
    ]


def summarise(done: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return rows and goals."""
    rows: list[dict[str, Any]] = []
    goals: list[dict[str, Any]] = []
    for name in sorted({line["data"] for line in done}):
        for target in ("all", *SOURCES[name].targets):
            part = [line for line in done if line["data"] == name and target in ("all", line["target"])]
            where = {"data": name, "target": target}
            for doubt in part[0]["doubts"] if part else ():
                for metric in part[0]["doubts"][doubt]:
                    values = [line["doubts"][doubt][metric] for line in part if np.isfinite(line["doubts"][doubt][metric])]
                    if values:
                        rows.append(where | {"method": doubt, "metric": metric, "n": len(values)} | _moments(values))
            for metric in OF_CELL if part else ():
                values = [line[metric] for line in part]
                rows.append(where | {"method": part[0]["siblings"], "metric": metric, "n": len(part)} | _moments(values))
        mine = [line for line in done if line["data"] == name]
        for metric in ("caught_10", "caught_20"):
            means = {rival: np.mean([line["doubts"][rival][metric] for line in mine]) for rival in COMPARATORS}
            best = max(means, key=lambda rival: float(means[rival]))
            gaps = np.array([line["doubts"][SERVED][metric] - line["doubts"][best][metric] for line in mine])
            mean, low, high = interval(gaps)
            rows.append({
                "data": name, "target": "all", "method": f"{SERVED} less {best}", "metric": metric, "mean": mean,
                "low": low, "high": high, "n": len(gaps),
            })  # fmt: skip
            goals.append(
                report.goal(f"{name}: share of errors caught among {metric[-2:]}% flagged, served less {best}", mean, 0.0)
            )
        for target in sorted({line["target"] for line in mine}):
            power = float(np.mean([line["alarm_power"] for line in mine if line["target"] == target]))
            goals.append(report.goal(f"{name}, {target}: power of the site alarm from {SCANS} scans", power, 0.95))
        rows += gaps_of(mine)
        if mine[0]["siblings"] == LEFT_OUT:
            gain = next(row["mean"] for row in rows if row["data"] == name and row["metric"] == GAP and "low" in row)
            goals.append(report.goal(f"{name}: gap between expected and true mean loss, softmax's own less ours", gain, 0.0))
        false = float(np.mean([line["alarm_false"] for line in mine]))
        goals.append(report.goal(f"{name}: 1 less the rate of false alarms on the known domains", 1 - false, 0.99))
    return rows, goals


def gaps_of(done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return how far each of the :data:`WAYS` is from the truth on the unseen domains of a data set, and a paired difference."""
    gaps = {way: np.array([abs(line[way] - line["true_mean"]) for line in done]) for way in WAYS}
    where = {"data": done[0]["data"], "target": "all", "metric": GAP, "n": len(done)}
    mean, low, high = interval(gaps["entropy_mean"] - gaps["unseen_mean"])
    return [
        *(where | {"method": WAYS[way]} | _moments(list(values)) for way, values in gaps.items()),
        where | {"method": f"{WAYS['entropy_mean']} less {WAYS['unseen_mean']}", "mean": mean, "low": low, "high": high},
    ]  # fmt: skip


def _moments(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown tables of the page on methods: errors caught by each doubt, and what is said of a whole site."""
    names = sorted({row["data"] for row in rows})
    found = {(row["data"], row["target"], row["metric"], row["method"]): row for row in rows if "std" in row}
    doubts = dict.fromkeys(method for _, _, metric, method in found if metric == "caught_20")

    def figure(name: str, target: str, metric: str, method: str) -> str:
        row = found.get((name, target, metric, method))
        return f"{row['mean']:.2f} ± {row['std']:.2f} ({row['n']})" if row else ""

    caught = [[doubt, *(figure(name, "all", "caught_20", doubt) for name in names)] for doubt in doubts]
    said = [[way, *(figure(name, "all", GAP, way) for name in names)] for way in WAYS.values()]
    sites = [
        [name, target, *(figure(name, target, metric, method) for metric in OF_CELL)]
        for name, target, metric, method in found
        if metric == "error" and target != "all"
    ]
    return (
        report.markdown(["errors caught, a fifth flagged (number of runs)", *names], caught)
        + "\n\n"
        + report.markdown(["gap between expected and true mean loss, nats (number of runs)", *names], said)
        + "\n\n"
        + report.markdown(["data", "unseen domain", *OF_CELL], sites)
    )


def draw(rows: list[dict[str, Any]], axes: Any) -> None:
    """Draw the share of errors caught when a fifth is flagged, a group of bars a data set."""
    shown = [row for row in rows if row["metric"] == "caught_20" and row["target"] == "all" and "std" in row]
    names, doubts = sorted({row["data"] for row in shown}), list(dict.fromkeys(row["method"] for row in shown))
    for place, doubt in enumerate(doubts):
        means = [next(row["mean"] for row in shown if row["data"] == name and row["method"] == doubt) for name in names]
        axes.bar(np.arange(len(names)) + place / (len(doubts) + 1), means, 1 / (len(doubts) + 1), label=doubt)
    axes.axhline(0.2, color="grey", linewidth=0.8)
    axes.set_xticks(np.arange(len(names)) + 0.4, names)
    axes.set_ylabel("share of errors caught, 20% flagged")
    axes.set_ylim(0, 1.4 * axes.get_ylim()[1])  # room for the legend
    axes.legend(fontsize=6, ncols=3, loc="upper center")


def main() -> None:
    """Run the cells that are missing, then write the result."""
    options = report.cells_parser(
        __doc__, "folder with pacs, cxr and wbc", RECIPES, "as given to generalization.py; give it again to go on"
    ).parse_args()
    torch.set_num_threads(1)
    folder = options.work / options.scale
    log = report.cell_log("doubt", options.scale, folder)
    recipe = RECIPES[options.scale]

    @cache
    def data(of: str) -> Domains:
        return load(of, options.data, options.work / "cache", recipe.side, MOST[options.scale])

    def say(line: dict[str, Any]) -> str:
        found = {name: round(figures["caught_20"], 2) for name, figures in line["doubts"].items()}
        return f"error {line['error']:.2f}, caught {found}"

    todo = [] if options.summary else cells(options.scale)
    report.run_cells(log, todo, lambda cell: run_cell(cell, data(cell.data), recipe, options.scale, folder), say)
    rows, goals = summarise(report.finished(log, cells(options.scale)))
    file = report.write("doubt", options.scale, SEEDS, rows, goals)
    report.plot(file, lambda axes: draw(rows, axes))
    if options.scale == "small":
        report.fill(PAGE, "doubt", table(rows))
    print(file)


if __name__ == "__main__":
    main()
