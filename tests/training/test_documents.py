"""The documents about models and figures say what the code and the cards say."""

import re
from pathlib import Path

import pytest

from models.card import Figure, ModelCard, SegmenterCard, read_package
from training import segmenter, segmenter_evaluate
from training.classifier import _parser
from training.metrics import METRICS

ROOT = Path(__file__).parents[2]
ZOO = ROOT / "models" / "zoo"
SHIPPED = sorted(path.name for path in ZOO.iterdir() if path.is_dir())


@pytest.fixture(params=SHIPPED)
def any_card(request: pytest.FixtureRequest) -> ModelCard | SegmenterCard:
    return read_package(ZOO / request.param)[0]


@pytest.fixture(scope="module")
def card() -> ModelCard:
    found = read_package(ZOO / "cxr-pneumonia")[0]
    assert isinstance(found, ModelCard)
    return found


def number(figure: Figure) -> str:
    if figure.value is None:
        return "not defined"
    interval = f" ({figure.low:.3f} to {figure.high:.3f})" if figure.low is not None and figure.high is not None else ""
    return f"{figure.value:.3f}{interval}"


def table(card: ModelCard | SegmenterCard) -> list[str]:
    """Return the lines of the table of figures: one a metric, one column a domain and way of holding out."""
    whole = {(f.domain, f.held_out, f.metric): f for f in card.evaluation if f.subgroup == "all"}
    kinds = [kind for kind in ("patients", "domain") if any(held == kind for _, held, _ in whole)]
    columns = [(domain, held) for held in kinds for domain in card.training.config["domains"]]
    metrics = METRICS if isinstance(card, ModelCard) else segmenter_evaluate.METRICS
    sizes = [str(whole[(*column, next(iter(metrics)))].n) for column in columns]
    head = "| figure | " + " | ".join(f"{domain}, {held} held out" for domain, held in columns) + " |"
    lines = [head, "| --- " * (len(columns) + 1) + "|", "| images | " + " | ".join(sizes) + " |"]
    for metric in metrics:
        known = [whole.get((*column, metric)) for column in columns]
        lines.append(f"| `{metric}` | " + " | ".join(number(each) if each else "" for each in known) + " |")
    return lines


def test_models_page_has_the_cards_figures(any_card: ModelCard | SegmenterCard) -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    assert "\n".join(table(any_card)) in text
    changed = any_card.model_copy(update={"evaluation": tuple(f.model_copy(update={"n": f.n + 1}) for f in any_card.evaluation)})
    assert "\n".join(table(changed)) not in text  # control


def test_models_page_has_the_cards_limits_and_words(any_card: ModelCard | SegmenterCard) -> None:
    card = any_card
    text = re.sub(r"\s+", " ", (ROOT / "docs" / "models.md").read_text())
    if isinstance(card, ModelCard):
        finding = card.output.findings[0]
        limits = (f"operating point {finding.operating_point:.3f}", finding.rule)
    else:
        limits = (f"foreground probability {card.output.threshold:g}", card.output.rule)
    for words in (
        f"`{card.name}` {card.version}", *card.intended_use.model_dump().values(), *limits, card.calibration.method,
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
    other = read_package(ZOO / "nuclei")[0].training.command.split()[3:]
    lines = [line for line in text.splitlines() if line.startswith("overread train segmenter")]
    parsed = [vars(segmenter._parser().parse_args(line.split()[3:])) for line in lines]
    theirs = vars(segmenter._parser().parse_args(other))
    names = ("domains", "label", "seed", "epochs", "supervision", "edges", "crf", "stain", "precision")
    assert [theirs[name] for name in names] in [[each[name] for name in names] for each in parsed]
