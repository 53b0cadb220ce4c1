"""Routes for Label Studio, as its machine-learning backend and its webhook.

Nothing is fetched: a task is known by the ``result_id`` that was exported with it, and all else in a request is passed over.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from models import __version__
from models.errors import Refusal
from models.triage import Verdict
from service.audit import Who
from service.item_answers import is_blind
from service.label_schemas import LabelIn
from service.label_studio import Part, prediction, said
from service.loop_schemas import Digest
from service.routes import Call, Handler, json_response
from service.store import Stored

if TYPE_CHECKING:
    from service.analysis import Site

MAX_TASKS = 1000
MOST_SECONDS = 86_400.0


class _Theirs(BaseModel):
    """A document of Label Studio: it holds more than we read, other versions' fields among it."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class StudioTaskData(_Theirs):
    """What we exported a task with; the image in it is not looked at."""

    result_id: Digest


class StudioTask(_Theirs):
    """A task that we exported."""

    data: StudioTaskData


class StudioPredictIn(_Theirs):
    """What Label Studio asks of a backend."""

    tasks: Annotated[list[StudioTask], Field(max_length=MAX_TASKS)]


class StudioUser(_Theirs):
    """A user of Label Studio, where it sends more than the number."""

    id: int


class StudioAnnotation(_Theirs):
    """What a user of Label Studio submitted; ``completed_by`` is the user's number."""

    id: int
    completed_by: int | StudioUser
    result: list[Part]
    updated_at: Annotated[str, Field(max_length=64)] = ""
    lead_time: Annotated[float, Field(allow_inf_nan=False)] | None = None
    was_cancelled: bool = False


class StudioEvent(_Theirs):
    """A webhook of Label Studio. Only ANNOTATION_CREATED and ANNOTATION_UPDATED become labels."""

    action: Annotated[str, Field(max_length=64)]
    annotation: StudioAnnotation | None = None
    task: StudioTask | None = None


class _Ours(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StudioHealth(_Ours):
    """Whether the backend answers."""

    status: Literal["UP"] = "UP"
    model_class: str = "Overread"


class StudioSetup(_Ours):
    """Which version answers."""

    model_version: str


class StudioPrediction(_Ours):
    """A stored result as Label Studio shows it; ``score`` is larger the less doubtful the image is."""

    result: list[dict[str, Any]]
    score: Annotated[float, Field(ge=0, le=1)]
    model_version: str


class StudioPredictions(_Ours):
    """A prediction a task, in their order."""

    results: list[StudioPrediction]


class StudioStored(_Ours):
    """What became of an event: ``label_id`` is null where it is none that we keep."""

    status: Literal["ok", "passed_over"]
    label_id: Digest | None


EVENTS = frozenset({"ANNOTATION_CREATED", "ANNOTATION_UPDATED"})


def _known(site: Site, task: StudioTask) -> tuple[Stored, Verdict]:
    stored, latest = site.store.find(task.data.result_id), site.store.verdict(task.data.result_id)
    if stored is None or latest is None:
        raise Refusal("not_found", "A task is of no result that is stored here: export the tasks from this service.")
    return stored, latest[1].verdict


def _blind(site: Site, stored: Stored) -> bool:
    """Tell whether a task is of an item that is read without what the model says."""
    origin = site.loop.items.origin(stored.result["id"])
    return origin is not None and is_blind(site.settings, origin)


def _keep(site: Site, event: StudioEvent, who: Who) -> str:
    annotation, task = event.annotation, event.task
    if annotation is None or task is None:
        raise Refusal("bad_request", "The event carries no annotation, or not its task.")
    stored, _ = _known(site, task)
    says = said(annotation.result, stored)
    given = LabelIn.model_validate({
        "result_id": stored.result["id"], "image_sha256": stored.result["image_sha256"],
        "model_sha256": stored.result["model_sha256"], "model_was_right": False, "shown_earlier": True, **says,
        "seconds": None if annotation.lead_time is None else min(max(annotation.lead_time, 0.0), MOST_SECONDS),
    })  # fmt: skip
    user = annotation.completed_by if isinstance(annotation.completed_by, int) else annotation.completed_by.id
    state = hashlib.sha256(given.model_dump_json(include={"classes", "annotation"}).encode()).hexdigest()
    key = f"label-studio {annotation.id} {annotation.updated_at} {state}"
    reader = f"{who.name}:{user}"
    if len(reader) > 64:
        raise Refusal("label_invalid", "A reader has 64 characters at most: give Label Studio a token with a shorter name.")
    return site.loop.labels.add(given, reader, key, "label-studio", corrects=True, by=who).label_id


async def _health(_: Site, call: Call) -> Response:
    call.query()
    return json_response(StudioHealth())


async def _setup(site: Site, call: Call) -> Response:
    call.query()
    # It sends its own access token, which is neither read nor kept
    await call.document(_Theirs, site.settings.body_timeout_seconds)
    return json_response(StudioSetup(model_version=f"overread {__version__}"))


async def _predict(site: Site, call: Call) -> Response:
    call.query()
    # Tasks come with their images where these were exported as data
    wanted = await call.document(StudioPredictIn, site.settings.body_timeout_seconds, site.settings.max_body_bytes)

    def answered() -> StudioPredictions:
        known = [_known(site, task) for task in wanted.tasks]
        # To a reader who is not to know, the model says nothing
        found = [prediction(stored, "refuse" if _blind(site, stored) else verdict) for stored, verdict in known]
        site.audit.read(call.who, "result_read", [stored.result["image_sha256"] for stored, _ in known])
        return StudioPredictions(results=[StudioPrediction.model_validate(each) for each in found])

    return json_response(await site.engine.run(answered))


async def _webhook(site: Site, call: Call) -> Response:
    call.query()
    event = await call.document(StudioEvent, site.settings.body_timeout_seconds, site.settings.max_body_bytes)
    if event.action not in EVENTS or (event.annotation is not None and event.annotation.was_cancelled):
        return json_response(StudioStored(status="passed_over", label_id=None))
    label_id = await site.engine.run(lambda: _keep(site, event, call.who))
    site.telemetry.labels.labels("label-studio").inc()
    return json_response(StudioStored(status="ok", label_id=label_id), 201)


STUDIO_HANDLERS: dict[tuple[str, str], Handler] = {
    ("GET", "/v1/label-studio/health"): _health,
    ("POST", "/v1/label-studio/setup"): _setup,
    ("POST", "/v1/label-studio/predict"): _predict,
    ("POST", "/v1/label-studio/webhook"): _webhook,
}
"""(method, route) -> what answers it."""
