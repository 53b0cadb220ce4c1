"""A site in this process, and a client that calls its ASGI application without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from models.image import Image
from models.imaging import read_image
from models.predictor import Predictor
from service import lineup
from service.analysis import Site
from service.api import Api
from service.promotion import Desk
from service.server import Server
from service.settings import Settings
from service.store import Store, result_row
from service.tokens import add_token
from service.watch import Watch
from tests.postgresql import Cluster
from tests.service.archives import MemoryArchive
from tests.service.label_desk import Desk as LabelDesk
from tests.service.label_desk import add_readers
from tests.service.scans import ALL


@dataclass
class Caller:
    """Sends requests to the ASGI application of a site."""

    api: Api
    base_url: str

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.api)
            async with httpx.AsyncClient(transport=transport, base_url=self.base_url) as client:
                return await client.request(method, url, **options)

        return asyncio.run(send())

    def get(self, url: str, **options: Any) -> httpx.Response:
        return self.request("GET", url, **options)

    def predict(self, body: bytes, media_type: str = "image/png", query: str = "", **headers: str) -> httpx.Response:
        return self.request("POST", f"/v1/predict{query}", content=body, headers={"content-type": media_type} | headers)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is marked ``dialects`` on both databases, but for what looks into SQLite's file."""
    marked = metafunc.definition.get_closest_marker("dialects") is not None
    if marked and "dialect" in metafunc.fixturenames and "file" not in metafunc.fixturenames:
        metafunc.parametrize("dialect", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def dialect(request: pytest.FixtureRequest) -> str:
    """``sqlite``; also ``postgresql`` where the test is marked ``dialects``."""
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture(scope="session")
def database(postgresql: Cluster) -> str:
    """The name of a database with the newest schema."""
    name = postgresql.create()
    Store(Server(SecretStr(postgresql.url(name)), SecretStr(""))).close()
    return name


@pytest.fixture
def address(request: pytest.FixtureRequest, dialect: str) -> dict[str, str]:
    """The settings that say where the database is; it is empty."""
    if dialect == "sqlite":
        return {}
    cluster, name = request.getfixturevalue("postgresql"), request.getfixturevalue("database")
    cluster.empty(name)
    return {"database_url": cluster.url(name)}


@pytest.fixture
def where(address: dict[str, str], tmp_path: Path) -> Path | Server:
    """Where the database of ``make_site`` is."""
    return Settings.model_validate({"state": tmp_path / "state"} | address).store


@pytest.fixture
def environment(address: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The variables under which a command finds the database of ``make_site``."""
    for name, value in ({"state": str(tmp_path / "state")} | address).items():
        monkeypatch.setenv(f"OVERREAD_{name.upper()}", value)
    return monkeypatch


@pytest.fixture
def make_site(tmp_path: Path, package: Path, address: dict[str, str]) -> Iterator[Callable[..., Site]]:
    """Return a function that builds a site: ``make_site(**settings)``."""
    sites: list[Site] = []

    def make(**settings: Any) -> Site:
        chosen = {"state": tmp_path / "state", "models": (package,), "threads": 1} | address | settings
        sites.append(Site(Settings.model_validate(chosen)))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    """A token of each role, for the state folder that ``make_site`` uses."""
    file = tmp_path / "state" / "tokens.json"
    return {role: add_token(file, role, role) for role in ("device", "annotator", "operator")}


@pytest.fixture
def connect() -> Callable[..., Caller]:
    """Return a function that gives a caller of a site: ``connect(site, base_url)``."""

    def connect(site: Site | None, base_url: str = "http://127.0.0.1:3000") -> Caller:
        api = Api()
        api.site = site
        return Caller(api, base_url)

    return connect


@pytest.fixture
def client(make_site: Callable[..., Site], connect: Callable[..., Caller]) -> Caller:
    """A caller of an open site on loopback."""
    return connect(make_site())


@pytest.fixture(scope="module")
def predictor(package: Path) -> Predictor:
    return Predictor.load(package)


@pytest.fixture(scope="module")
def row(predictor: Predictor, draw: Callable[..., bytes]) -> Callable[[int], dict[str, Any]]:
    """Return a function that gives the row of a drawn image."""

    def row(seed: int) -> dict[str, Any]:
        image: Image = read_image(draw(seed))
        return result_row(image, predictor.predict([image])[0], predictor, [])

    return row


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "overread.sqlite3"


@pytest.fixture
def store(where: Path | Server, predictor: Predictor) -> Iterator[Store]:
    store = Store(where)
    store.register(predictor)
    yield store
    store.close()


@pytest.fixture(scope="module")
def segmenter(make_segmenter: Callable[..., Path]) -> Path:
    return make_segmenter("nuclei")


@pytest.fixture
def caller(make_site: Any, connect: Any, package: Path, segmenter: Path) -> Any:
    """A caller of a site that serves a classifier and a segmenter."""
    return connect(make_site(models=(package, segmenter)))


@pytest.fixture
def archive() -> MemoryArchive:
    return MemoryArchive()


@pytest.fixture
def start(make_site: Any, archive: MemoryArchive) -> Iterator[Callable[..., Watch]]:
    """Return a function that starts a watch anew, as after a crash, on the same database."""
    watches: list[Watch] = []

    def start(**settings: Any) -> Watch:
        site = make_site(**({"pacs_history": True, "pacs_poll_seconds": 0.01} | settings))
        watches.append(Watch(site, archive))  # type: ignore[arg-type]
        return watches[-1]

    yield start
    for watch in watches:
        watch.close()


@pytest.fixture
def site(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site that follows promotions when the test says so."""
    monkeypatch.setattr(lineup, "POLL_SECONDS", 3600.0)
    return make_site()


@pytest.fixture
def desk(tmp_path: Path, package: Path, address: dict[str, str]) -> Iterator[Desk]:
    """Where the packages of the sites of ``make_site`` are decided."""
    settings = Settings.model_validate({"state": tmp_path / "state", "models": (package,)} | address)
    store = Store(settings.store)
    yield Desk(settings, store)
    store.close()


@pytest.fixture
def open_desk(make_site: Callable[..., Site], connect: Callable[..., Caller], tmp_path: Path) -> Callable[..., LabelDesk]:
    """Return a function that opens a site where every scan becomes an item, with readers: ``open_desk(**settings)``."""

    def make(**settings: Any) -> LabelDesk:
        tokens = add_readers(tmp_path / "state" / "tokens.json")
        return LabelDesk(make_site(**(ALL | settings)), connect, tokens)

    return make
