"""The environment becomes settings, or the start is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from models.card import ZOO, Triage
from models.errors import Refusal
from service.settings import PROXIES, Settings, child_environment, drop_proxies, read_settings, shipped_models, triage_sha256


def refusal_of(**environment: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read_settings(environment)
    return caught.value


def test_defaults_need_nothing() -> None:
    settings = read_settings({"PATH": "/bin"})
    assert settings.threads == (os.cpu_count() or 1)
    assert settings.state == Path(".overread")
    assert settings.models[0].name == "cxr-pneumonia"
    assert sorted(settings.models) == sorted(card.parent for card in ZOO.glob("*/card.json"))
    assert len(set(settings.models)) == len(settings.models)


def test_every_released_package_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.settings.ZOO", tmp_path)
    monkeypatch.setattr("service.settings.DEFAULT_MODEL", tmp_path / "middle")
    for name in ("zebra", "middle", "alpha", ".zebra.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "card.json").touch()
    (tmp_path / "unreleased").mkdir()
    assert [folder.name for folder in shipped_models()] == ["middle", "alpha", "zebra"]


def test_values_are_read() -> None:
    settings = read_settings(
        {"OVERREAD_STATE": "/s", "OVERREAD_MODELS": "/a:/b", "OVERREAD_THREADS": "3", "OVERREAD_REVIEW_LOSS_PERCENTILE": "70.5"}
    )
    assert settings.state == Path("/s")
    assert settings.models == (Path("/a"), Path("/b"))
    assert settings.threads == 3
    assert settings.review_loss_percentile == 70.5
    assert settings.database.parent == settings.tokens.parent == Path("/s")


def test_lists_of_the_archive_are_separated_by_commas() -> None:
    settings = read_settings(
        {"OVERREAD_PACS_MODALITIES": "DX, CR,", "OVERREAD_PACS_RESULTS": "sr,sc", "OVERREAD_PACS_HOSTS": "a.b"}
    )
    assert settings.pacs_modalities == ("DX", "CR")
    assert settings.pacs_results == ("sr", "sc")
    assert settings.pacs_hosts == ("a.b",)
    assert refusal_of(OVERREAD_PACS_RESULTS="sr,pdf").code == "config_invalid"


def test_an_empty_value_is_as_if_unset() -> None:
    assert read_settings({"OVERREAD_THREADS": "", "OVERREAD_MODELS": ""}) == read_settings({})


def test_unknown_name_is_refused_with_its_name() -> None:
    refusal = refusal_of(OVERREAD_TREADS="2")
    assert refusal.code == "config_invalid"
    assert "OVERREAD_TREADS" in refusal.detail


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("THREADS", "0"),
        ("THREADS", "257"),
        ("THREADS", "two"),
        ("QUEUE", "-1"),
        ("DEADLINE_SECONDS", "0"),
        ("DEADLINE_SECONDS", "nan"),
        ("DEADLINE_SECONDS", "inf"),
        ("BODY_TIMEOUT_SECONDS", "nan"),
        ("MAX_BODY_BYTES", "10"),
        ("RATE_LIMIT_PER_MINUTE", "-1"),
        ("REVIEW_LOSS_PERCENTILE", "101"),
        ("REVIEW_DOMAIN_PERCENTILE", "nan"),
        ("REFUSE_DOMAIN_DISTANCE", "0"),
        ("REFUSE_DOMAIN_DISTANCE", "inf"),
        ("MODELS", ":"),
    ],
)
def test_out_of_range_is_refused_by_name(name: str, value: str) -> None:
    refusal = refusal_of(**{f"OVERREAD_{name}": value})
    assert refusal.code == "config_invalid"
    assert refusal.detail.startswith(f"OVERREAD_{name}:")


def test_a_site_overrides_single_limits_of_the_card() -> None:
    card = Triage(review_loss_percentile=90, review_domain_percentile=95, refuse_domain_distance=2)
    changed = Settings(review_loss_percentile=80).triage(card)
    assert (changed.review_loss_percentile, changed.review_domain_percentile, changed.refuse_domain_distance) == (80, 95, 2)
    assert triage_sha256(changed) != triage_sha256(card)
    assert triage_sha256(Settings().triage(card)) == triage_sha256(card)


def test_zero_is_a_limit_and_not_absent() -> None:
    card = Triage(review_loss_percentile=90, review_domain_percentile=95, refuse_domain_distance=2)
    assert Settings(review_loss_percentile=0).triage(card).review_loss_percentile == 0


def test_proxies_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    drop_proxies()
    assert not set(PROXIES) & set(os.environ)


def test_child_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    state = tmp_path / "new" / "state"
    child = child_environment(state, 3, 3000)
    assert not set(PROXIES) & set(child)
    assert child["BENTOML_DO_NOT_TRACK"] == "True"
    assert child["OVERREAD_STATE"] == str(state)
    assert Path(child["BENTOML_HOME"]).is_dir()
    assert child_environment(state, 3, 3001)["BENTOML_HOME"] != child["BENTOML_HOME"], "replicas empty each other's metrics"
    # The folder will hold the database: nobody else on the machine may look into it.
    assert state.stat().st_mode & 0o777 == 0o700
