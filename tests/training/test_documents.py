"""The documents about models and figures say what the code and the cards say."""

import re
from pathlib import Path

import pytest

from models.card import Figure, ModelCard, read_package
from training.classifier import _parser
from training.metrics import METRICS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "models" / "zoo" / "cxr-pneumonia"


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return read_package(PACKAGE)[0]


def number(figure: Figure) -> str:
    if figure.value is None:
        return "not defined"
    interval = f" ({figure.low:.3f} to {figure.high:.3f})" if figure.low is not None and figure.high is not None else ""
    return f"{figure.value:.3f}{interval}"


def table(card: ModelCard) -> list[str]:
    """Return the lines of the table of figures: one a metric, one column a domain and way of holding out."""
    columns = [(domain, held) for held in ("patients", "domain") for domain in card.training.config["domains"]]
    whole = {(f.domain, f.held_out, f.metric): f for f in card.evaluation if f.subgroup == "all"}
    sizes = [str(whole[(*column, "auroc")].n) for column in columns]
    head = "| figure | " + " | ".join(f"{domain}, {held} held out" for domain, held in columns) + " |"
    lines = [head, "| --- " * (len(columns) + 1) + "|", "| images | " + " | ".join(sizes) + " |"]
    for metric in METRICS:
        lines.append(f"| `{metric}` | " + " | ".join(number(whole[(*column, metric)]) for column in columns) + " |")
    return lines


def test_models_page_has_the_cards_figures(card: ModelCard) -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    assert "\n".join(table(card)) in text
    changed = card.model_copy(update={"evaluation": tuple(f.model_copy(update={"n": f.n + 1}) for f in card.evaluation)})
    assert "\n".join(table(changed)) not in text  # control


def test_models_page_has_the_cards_limits_and_words(card: ModelCard) -> None:
    text = re.sub(r"\s+", " ", (ROOT / "docs" / "models.md").read_text())
    finding = card.output.findings[0]
    for words in (
        f"`{card.name}` {card.version}", *card.intended_use.model_dump().values(),
        f"operating point {finding.operating_point:.3f}", finding.rule, card.calibration.method,
        f"refused beyond {card.triage.refuse_domain_distance:.2f}",
        *(text for source in card.training.sources for text in (source.credit, source.licence, source.link)),
    ):  # fmt: skip
        assert words in text, words


def test_training_page_explains_every_figure() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    part = text[text.index("| figure | meaning |") :].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE) == list(METRICS)


def test_training_page_names_the_command_that_made_the_model(card: ModelCard) -> None:
    text = (ROOT / "docs" / "training.md").read_text().replace("\\\n", " ")
    line = next(line for line in text.splitlines() if line.startswith("overread train classifier"))
    documented = vars(_parser().parse_args(line.split()[3:]))
    made = vars(_parser().parse_args(card.training.command.split()[3:]))
    for name in ("domains", "classes", "finding", "seed", "epochs", "precision"):
        assert documented[name] == made[name], name
    assert documented["input"].name == made["input"].name
