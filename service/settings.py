"""Settings, read from the environment here and nowhere else. ``docs/settings.md`` lists them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator

from models.card import DEFAULT_MODEL, ZOO, Percentile, Triage
from models.errors import Refusal
from service.server import DatabaseUrl, Server, read_secret

if TYPE_CHECKING:
    from models.signature import PublicKey

PREFIX = "OVERREAD_"
_LISTS = (
    "sites",
    "stations",
    *("proxy_hosts", "proxy_roles"),
    *("pacs_hosts", "pacs_results", "pacs_modalities", "pacs_body_parts", "pacs_stations", "pacs_descriptions"),
    "dimse_callers",
)
AeTitle = Annotated[str, Field(pattern=r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$")]
"""1 to 16 printable ASCII characters without backslash and outer spaces (PS3.5, 6.2)."""
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


def shipped_models() -> tuple[Path, ...]:
    """Return the folders of the released packages, the default model first; what a release has at hand begins with a dot."""
    return DEFAULT_MODEL, *sorted(card.parent for card in ZOO.glob("[!.]*/card.json") if card.parent != DEFAULT_MODEL)


class Settings(BaseModel):
    """How this site runs the service. Each field is the environment variable ``OVERREAD_<NAME>``."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)  # an address may hold a password

    state: Path = Field(Path(".overread"), description="Folder of the database and the tokens; created when missing.")
    database_url: DatabaseUrl = Field(
        SecretStr(""), description="Address of a PostgreSQL database, instead of the SQLite database in the state folder."
    )
    database_password_file: Path | None = Field(None, description="File that holds the password of that database.")
    models: Annotated[tuple[Path, ...], Field(min_length=1)] = Field(
        default_factory=shipped_models,
        description="Folders of model packages, separated by colons. The first is the default model.",
    )
    trusted_keys: tuple[Path, ...] = Field(
        (), description="Public keys (PEM), separated by colons; with any, only model packages that one of them signed are used."
    )
    threads: Annotated[int, Field(ge=1, le=256)] = Field(
        default_factory=lambda: os.cpu_count() or 1, description="Images worked on side by side in one worker."
    )
    queue: Annotated[int, Field(ge=0, le=10_000)] = Field(
        32, description="Images that may wait in one worker; more are answered 503 at once."
    )
    deadline_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        30.0, description="Longest wait in the queue; after it the answer is 503 without work done."
    )
    batch: Annotated[int, Field(ge=1, le=256)] = Field(
        1, description="Images of several requests that go through a model together; more than 1 is for GPUs."
    )
    batch_wait_seconds: Annotated[float, Field(ge=0, le=1)] = Field(
        0.002, description="Longest wait of an image for others to go with, where OVERREAD_BATCH is more than 1."
    )
    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(64 * 1024 * 1024, description="Largest request body; larger is 413.")
    body_timeout_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        30.0, description="Longest time a client may take to send a body; after it the answer is 408."
    )
    rate_limit_per_minute: Annotated[int, Field(ge=0)] = Field(
        0, description="Requests a minute and token in one worker; more are answered 429. 0 is no limit."
    )
    review_loss_percentile: Percentile | None = Field(
        None, description="Review from this percentile of predicted loss on, instead of the card's."
    )
    review_domain_percentile: Percentile | None = Field(
        None, description="Review from this percentile of domain distance on, instead of the card's."
    )
    refuse_domain_distance: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Refuse beyond this domain distance, instead of the card's."
    )
    sites: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")], ...] = Field(
        (), description="Names of the places that images come from, separated by commas; a request may name no other."
    )
    stations: tuple[str, ...] = Field(
        (), description="Scanners with metrics of their own: SITE=STATION, or STATION without a site; separated by commas."
    )
    keep_days: Annotated[float, Field(gt=0, le=36_500, allow_inf_nan=False)] = Field(
        30.0, description="How long the pixels of a worklist item are kept; then an item without its labels expires."
    )
    keep_random_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.02, description="Share of the accepted scans that become worklist items too, drawn at random."
    )
    keep_max_bytes: Annotated[int, Field(ge=0)] = Field(
        10 * 1024**3, description="Size of all kept pixels; a scan that does not fit in is answered, and becomes no item."
    )
    result_days: Annotated[float, Field(gt=0, le=36_500, allow_inf_nan=False)] | None = Field(
        None, description="How long results are kept, with all that there is of their images, labels too; for ever if not set."
    )
    lease_minutes: Annotated[float, Field(gt=0, le=1440, allow_inf_nan=False)] = Field(
        15.0, description="How long a reader has an item to himself without renewing the lease."
    )
    readers: Annotated[int, Field(ge=1, le=2)] = Field(1, description="How many readers label each item: 1, or 2.")
    blind_reading: Literal["none", "random", "all"] = Field("random", description="Read without the model: none, random, all.")
    session_hours: Annotated[float, Field(gt=0, le=720, allow_inf_nan=False)] = Field(
        12.0, description="How long a session of the page lasts; then one signs in again."
    )
    proxy_user_header: str | None = Field(
        None, description="Header in which a trusted proxy names who it has signed in, such as X-Auth-Request-Email."
    )
    proxy_groups_header: str | None = Field(
        None, description="Header in which it names that person's groups, separated by commas; without it, roles are of persons."
    )
    proxy_hosts: tuple[str, ...] = Field(
        (), description="Addresses or networks that the proxy connects from, separated by commas; nobody else is believed."
    )
    proxy_roles: tuple[str, ...] = Field(
        (), description="GROUP=ROLE, separated by commas, with annotator or operator; * is everyone whom the proxy names."
    )

    pacs_url: str | None = Field(None, description="DICOMweb address of the archive that `overread watch` serves.")
    pacs_orthanc_url: str | None = Field(
        None, description="REST address of the same archive where it is an Orthanc; its log is followed instead of polling."
    )
    pacs_hosts: tuple[str, ...] = Field(
        (), description="Hosts that may be connected to, separated by commas; this machine always may."
    )
    pacs_user: str | None = Field(None, description="User name at the archive.")
    pacs_password_file: Path | None = Field(None, description="File that holds the password.")
    pacs_token_file: Path | None = Field(None, description="File that holds a bearer token, instead of user and password.")
    pacs_ca_file: Path | None = Field(None, description="Certificates (PEM) that the archive's is checked against.")
    pacs_certificate_file: Path | None = Field(None, description="Our certificate and key (PEM), where the archive asks for one.")
    pacs_timeout_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        30.0, description="Longest silence of the archive; a whole answer may take ten times as long."
    )
    pacs_poll_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        5.0, description="Time between two looks into the archive when there is nothing to do."
    )
    pacs_attempts: Annotated[int, Field(ge=1, le=100)] = Field(
        8, description="Attempts at one instance before it is a failure; the archive being away does not count."
    )
    pacs_history: bool = Field(False, description="Whether the first start also takes what the archive holds already.")
    pacs_days: Annotated[int, Field(ge=1, le=3650)] = Field(
        2, description="Age of studies, in days, that are looked for where there is no log to follow."
    )
    pacs_model: str | None = Field(None, description="Name of the model for images of the archive; the default model if not set.")
    pacs_site: str = Field("", description="Which of the sites the images of the archive come from; none if not set.")
    pacs_results: tuple[Literal["sr", "seg", "sc", "ann"], ...] = Field(
        ("sr",), description="What is stored: sr, seg, sc, ann, separated by commas."
    )
    pacs_modalities: tuple[str, ...] = Field((), description="Modalities that are fetched; all if not set.")
    pacs_body_parts: tuple[str, ...] = Field((), description="Values of BodyPartExamined that are fetched; all if not set.")
    pacs_stations: tuple[str, ...] = Field(
        (), description="Patterns of StationName that are fetched, such as ROOM-*; all if not set."
    )
    pacs_descriptions: tuple[str, ...] = Field(
        (), description="Patterns of the study's or series' description that are fetched, such as *chest*; all if not set."
    )

    dimse_host: str = Field("127.0.0.1", description="Address that `overread receive` listens on.")
    dimse_port: Annotated[int, Field(ge=0, le=65535)] = Field(11112, description="Port that `overread receive` listens on.")
    dimse_title: AeTitle = Field("OVERREAD", description="AE title of `overread receive`; a caller has to use it.")
    dimse_callers: tuple[AeTitle, ...] = Field(
        (), description="AE titles that may send, separated by commas; every one on this machine if not set."
    )
    dimse_associations: Annotated[int, Field(ge=1, le=64)] = Field(
        4, description="Associations at the same time; each holds one instance of OVERREAD_MAX_BODY_BYTES at most."
    )
    dimse_timeout_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        30.0, description="Longest silence of a sender; after it the association is aborted."
    )
    dimse_certificate_file: Path | None = Field(
        None, description="Our certificate and key (PEM); with it `overread receive` speaks TLS only."
    )
    dimse_ca_file: Path | None = Field(None, description="Certificates (PEM) that a sender's has to come from.")

    @field_validator("result_days")
    @classmethod
    def _outlives_pixels(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and value < info.data.get("keep_days", 0):
            raise ValueError("it is at least OVERREAD_KEEP_DAYS")
        return value

    @field_validator("pacs_site")
    @classmethod
    def _known_site(cls, value: str, info: ValidationInfo) -> str:
        if value and value not in info.data.get("sites", ()):
            raise ValueError("it is none of OVERREAD_SITES")
        return value

    def secret(self, name: str) -> str:
        """Return what a file of the settings holds, without its last line break; empty where it is not set.

        Raises
        ------
        Refusal
            ``config_invalid`` if it cannot be read or holds more than a line.
        """
        file: Path | None = getattr(self, name)
        return "" if file is None else read_secret(file, f"{PREFIX}{name.upper()}")

    @property
    def database(self) -> Path:
        """File of the SQLite database, where there is no address of another one."""
        return self.state / "overread.sqlite3"

    @property
    def store(self) -> Path | Server:
        """Where the database is; raises as :meth:`secret`."""
        if not self.database_url.get_secret_value():
            return self.database
        return Server(self.database_url, SecretStr(self.secret("database_password_file")))

    @property
    def packages(self) -> Path:
        """Folder of the model packages that were given to this site."""
        return self.state / "packages"

    @property
    def kept(self) -> Path:
        """Folder of the kept pixels."""
        return self.state / "kept"

    @property
    def pseudonym_key(self) -> Path:
        """File of the secret that pseudonyms are made with."""
        return self.state / "pseudonym.key"

    @property
    def tokens(self) -> Path:
        """File of the hashed tokens."""
        return self.state / "tokens.json"

    def trusted(self) -> tuple[PublicKey, ...]:
        """Return the keys of which one must have signed a model package; none where packages need no signature.

        Raises
        ------
        Refusal
            ``config_invalid`` if one of them cannot be read.
        """
        if not self.trusted_keys:
            return ()
        from models.signature import read_public_keys  # most sites need no cryptography

        return read_public_keys(self.trusted_keys)

    def triage(self, default: Triage) -> Triage:
        """Return the limits in force: the card's, with what this site sets instead."""
        chosen = {name: value for name in Triage.model_fields if (value := getattr(self, name)) is not None}
        return default.model_copy(update=chosen)


def triage_sha256(triage: Triage) -> str:
    """Return the digest of the limits that made a verdict, stored with it."""
    return hashlib.sha256(json.dumps(triage.model_dump(), sort_keys=True).encode()).hexdigest()


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings.

    Parameters
    ----------
    environment : mapping, optional
        Instead of ``os.environ``.

    Raises
    ------
    Refusal
        ``config_invalid`` for an unknown name with our prefix, or a value out of range.
    """
    environment = os.environ if environment is None else environment
    given: dict[str, Any] = {
        name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX) and value
    }
    for name in {"models", "trusted_keys"} & given.keys():
        given[name] = tuple(Path(part) for part in given[name].split(":") if part)
    for name in _LISTS:
        if name in given:
            given[name] = tuple(part.strip() for part in given[name].split(",") if part.strip())
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + "_".join(str(part) for part in first["loc"][:1]).upper()
        raise Refusal("config_invalid", f"{name}: {first['msg']}.") from error


def drop_proxies() -> None:
    """Remove proxy variables from this process: the service makes no outbound request, so nothing may be redirected."""
    for name in PROXIES:
        os.environ.pop(name, None)


def keep_temporary_files(state: Path) -> None:
    """Let SQLite put its temporary files, which hold what the database holds, beside it rather than where everybody may write."""
    os.environ["SQLITE_TMPDIR"] = str(state.absolute())


def child_environment(state: Path, workers: int, port: int) -> dict[str, str]:
    """Return the environment in which ``bentoml serve`` is started: no tracking, no proxies, its files under ``state``.

    A start empties the folder of its workers' metrics, so replicas that share ``state`` must not share that: it is a port's own.
    """
    environment = {name: value for name, value in os.environ.items() if name not in PROXIES}
    home = state / "bentoml" / str(port)
    state.mkdir(parents=True, exist_ok=True, mode=0o700)  # the mode is the last folder's only, so this comes first
    home.mkdir(parents=True, exist_ok=True)
    return environment | {
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(home),
        "BENTOML_CONFIG_OPTIONS": f"services.overread.workers={workers}",
        PREFIX + "STATE": str(state),
    }
