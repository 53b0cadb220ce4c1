"""The model package: intact it loads; any changed byte, missing field or unknown schema is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from pydantic import TypeAdapter

from models.card import AnyCard, ModelCard, SegmenterCard, card_bytes, read_package
from models.errors import Refusal
from models.predictor import Graph, Predictor
from tests.conftest import tiny_card, tiny_graph


def copy(package: Path, folder: Path) -> Path:
    for name in ("model.onnx", "card.json"):
        (folder / name).write_bytes((package / name).read_bytes())
    return folder


def refused(folder: Path) -> bool:
    try:
        Predictor.load(folder)
    except Refusal as refusal:
        return refusal.code == "package_invalid"
    return False


def test_an_intact_package_loads(package: Path, tmp_path: Path) -> None:
    assert not refused(copy(package, tmp_path))


def test_cards_of_earlier_releases_are_read_to_the_last_byte() -> None:
    for file in sorted((Path(__file__).parent / "cards").glob("*.json")):
        card: ModelCard | SegmenterCard = TypeAdapter(AnyCard).validate_json(file.read_bytes())
        assert f"{card.name}-{card.version}" == file.stem
        assert card_bytes(card) == file.read_bytes()
        changed = card.model_copy(update={"created": "2000-01-01T00:00:00Z"})
        assert card_bytes(changed) != file.read_bytes()  # control


@pytest.mark.parametrize("file", ["model.onnx", "card.json"])
def test_a_flipped_byte_is_refused_wherever_it_is(package: Path, tmp_path: Path, file: str) -> None:
    copy(package, tmp_path)
    intact = (package / file).read_bytes()
    rng = np.random.default_rng(0)
    places = rng.choice(len(intact), 100, replace=False)
    accepted = []
    for place in places:
        changed = bytearray(intact)
        changed[place] ^= 1 << int(rng.integers(8))
        (tmp_path / file).write_bytes(changed)
        if not refused(tmp_path):
            accepted.append(int(place))
    assert accepted == []


def test_reserialising_the_card_is_seen(package: Path, tmp_path: Path) -> None:
    copy(package, tmp_path)
    document = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps(document))
    assert refused(tmp_path)


def required(document: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """List the path of every field in the objects of a card; free-form and list content is left out."""
    if not isinstance(document, dict) or path in {("training", "config"), ("training", "versions")}:
        return []
    inner = [found for key, value in document.items() for found in required(value, (*path, key))]
    return [(*path, key) for key in document] + inner


CARD = json.loads(card_bytes(tiny_card(tiny_graph())))


@pytest.mark.parametrize("path", required(CARD), ids=".".join)
def test_each_missing_field_is_refused(package: Path, tmp_path: Path, path: tuple[str, ...]) -> None:
    copy(package, tmp_path)
    document = json.loads(card_bytes(tiny_card(tiny_graph())))
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    del parent[path[-1]]
    (tmp_path / "card.json").write_text(json.dumps(document))
    assert refused(tmp_path)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_an_unknown_schema_is_refused(package: Path, tmp_path: Path, version: object) -> None:
    copy(package, tmp_path)
    document = CARD | {"schema_version": version}
    (tmp_path / "card.json").write_text(json.dumps(document))
    with pytest.raises(Refusal, match="schema"):
        read_package(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff\xfe", b'{"schema_version": 1}'])
def test_a_card_that_is_none_is_refused(package: Path, tmp_path: Path, content: bytes) -> None:
    copy(package, tmp_path)
    (tmp_path / "card.json").write_bytes(content)
    assert refused(tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path)


def test_nan_in_a_card_is_refused() -> None:
    document = CARD | {"triage": CARD["triage"] | {"refuse_domain_distance": float("nan")}}
    with pytest.raises(ValueError, match="finite"):
        ModelCard.model_validate(document)


def write(folder: Path, graph: bytes) -> Path:
    (folder / "model.onnx").write_bytes(graph)
    (folder / "card.json").write_bytes(card_bytes(tiny_card(graph)))
    return folder


def test_weights_outside_the_file_are_refused(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(tiny_graph())
    path = tmp_path / "external.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert refused(write(tmp_path, path.read_bytes()))


def rename(old: str, new: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for value in [*model.graph.input, *model.graph.output]:
            if value.name == old:
                value.name = new
        for node in model.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]

    return change


@pytest.mark.parametrize("name", ["image", "logits", "features", "loss_score", "domain_distance", "heatmap"])
def test_a_graph_without_an_input_or_output_is_refused(tmp_path: Path, name: str) -> None:
    model = onnx.load_model_from_string(tiny_graph())
    rename(name, "other")(model)
    assert refused(write(tmp_path, model.SerializeToString()))


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    assert refused(write(tmp_path, b"not a graph"))


def test_the_provider_is_what_runs() -> None:
    assert Graph(tiny_graph()).provider == "CPUExecutionProvider"
