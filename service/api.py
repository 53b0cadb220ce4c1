"""The HTTP interface: routes to handlers, refusals to problem documents, and a metric for each answer."""

from __future__ import annotations

import asyncio
import json
import time

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from models.errors import Refusal
from service.access import ACCESS
from service.analysis import Site
from service.answers import Reply
from service.callers import identify
from service.candidates import CANDIDATE_HANDLERS
from service.heads import MAX_UNREAD_BYTES
from service.label_api import LABEL_HANDLERS
from service.label_studio_api import STUDIO_HANDLERS
from service.measured import measure_archive, measure_sites
from service.negotiation import JSON, choose
from service.openapi import document
from service.page import page
from service.page_api import PAGE_HANDLERS
from service.routes import Call, Handler, allowed, json_response, match
from service.schemas import RETRY_AFTER, Status, problem
from service.stow import DICOM_JSON, Outcome, answer, meta_uids, receive, status_of
from service.telemetry import TIMED, counted, log_fault, logger
from service.wall import Upload, check_host, declared_length, read_upload
from service.wanted import PARAMETERS, Wanted, read_wanted
from service.worklist_api import WORKLIST_HANDLERS, measure

HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
}
"""Of every response; one that brings its own keeps it."""


async def _send(reply: Reply) -> Response:
    text = await asyncio.to_thread(reply.text) if reply.slow else reply.text()
    return Response(text, media_type=reply.media_type, headers={"vary": "Accept"})


class Api:
    """The ASGI application. ``site`` is set once a worker has loaded its models."""

    def __init__(self) -> None:
        self.site: Site | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            # The one other type that gets here is a websocket; there is none, and closing before accepting says so.
            await send({"type": "websocket.close", "code": 1000})
            return
        started = time.perf_counter()
        request = Request(scope, receive)
        route, parameters = match(scope["path"])
        code = "ok"
        try:
            response = await self._answer(request, route, parameters)
        except Refusal as refusal:
            code, response = _refused(refusal, route)
        except ClientDisconnect:
            # Nobody reads this, but BentoML keeps a request that says nothing until its time is over.
            code, response = _refused(Refusal("bad_request", "The client went away."), route)
        except Exception as error:  # noqa: BLE001  (last line of defence: a fault of ours must be answered, and be seen)
            log_fault(error)
            code, response = _refused(Refusal("internal_error"), route)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if self.site is not None:
            self._count(route or "none", response.status_code, code, time.perf_counter() - started)
        await response(scope, receive, send)

    def _count(self, route: str, status: int, code: str, seconds: float) -> None:
        assert self.site is not None
        self.site.telemetry.requests.labels(*counted(route, status, code)).inc()
        if route in TIMED:
            self.site.telemetry.request_duration.labels(route).observe(seconds)
        if route not in {"/healthz", "/readyz", "/metrics"}:
            fields = {"route": route, "status": status, "code": code, "ms": round(seconds * 1000, 1)}
            logger().info("request", extra={"fields": fields})

    async def _answer(self, request: Request, route: str | None, parameters: dict[str, str]) -> Response:
        if route is None:
            raise Refusal("not_found")
        method = "GET" if request.method == "HEAD" else request.method
        if (method, route) not in ACCESS:
            raise Refusal("method_not_allowed")
        if route == "/healthz":
            return json_response(Status(status="ok"))
        site = self.site
        if site is None:
            raise Refusal("not_ready")
        site.access.follow()
        if site.access.open:
            check_host(request)
        public = "public" in ACCESS[method, route]
        caller = await identify(site, request, public=public)
        site.access.authorise(caller, method, route)
        if not public:  # strangers share a bucket: they must not use up what health checks need
            site.access.spend(caller)
        with site.bodies.held() as held:
            return await HANDLERS[method, route](site, Call(request, caller, parameters, held))


def _refused(refusal: Refusal, route: str | None) -> tuple[str, Response]:
    document = problem(refusal)
    response = json_response(document, document.status, "application/problem+json")
    if document.status in RETRY_AFTER:
        response.headers["retry-after"] = RETRY_AFTER[document.status]
    if document.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    if document.status == 405 and route is not None:
        response.headers["allow"] = allowed(route)
    if document.status == 406:
        response.headers["vary"] = "Accept"
    if document.status in {408, 413}:
        response.headers["connection"] = "close"  # the rest of the body is not read
    return document.code, response


async def _predict(site: Site, call: Call) -> Response:
    query = call.query(*PARAMETERS)
    wanted = read_wanted(query, call.accept, call.site(query.get("site"), site.settings.sites))
    length = declared_length(call.request)
    # A longer body has to be read, or who still sends it sees a broken connection instead of the refusal
    if length is not None and length <= MAX_UNREAD_BYTES:
        site.engine.check_room()
    upload = await read_upload(call.request, site.settings.max_body_bytes, site.settings.body_timeout_seconds, call.held)
    return await _send(await site.engine.run_and_commit(lambda: site.analyse(upload, wanted), site.conclude))


async def _studies(site: Site, call: Call) -> Response:
    query = call.query("model", "site")
    choose(call.accept, (DICOM_JSON, JSON))
    wanted = Wanted(query.get("model"), site=call.site(query.get("site"), site.settings.sites))
    served = site.served(wanted.model)  # one package for all; and a model that is not there is no instance's fault

    async def analyse(content: bytes) -> Outcome:
        upload = Upload(content, "application/dicom")
        reply = await site.engine.run_and_commit(lambda: site.analyse(upload, wanted, served), site.conclude)
        sop_class_uid, _ = meta_uids(content)
        return Outcome(sop_class_uid, reply.uid, reply.stored.result["id"], reply.judgement.verdict)

    settings = site.settings
    limits = (settings.threads, settings.max_body_bytes, settings.body_timeout_seconds)
    outcomes = await receive(call.request, analyse, *limits, call.held)
    for outcome in outcomes:
        site.telemetry.stow_instances.labels("ok" if outcome.refusal is None else "refused").inc()
    return Response(json.dumps(answer(outcomes)), status_of(outcomes), media_type=DICOM_JSON)


async def _result(site: Site, call: Call) -> Response:
    call.query()

    def read() -> Reply:
        reply = site.result(call.parameters["result_id"], call.accept)
        site.audit.read(call.who, "result_read", [reply.stored.result["image_sha256"]])
        return reply

    return await _send(await site.engine.run(read))


async def _models(site: Site, call: Call) -> Response:
    call.query()
    return json_response(site.models())


async def _metrics(site: Site, _: Call) -> Response:
    await asyncio.to_thread(measure_archive, site)
    await asyncio.to_thread(measure, site)
    await asyncio.to_thread(measure_sites, site)
    content, media_type = site.telemetry.exposition()
    return Response(content, headers={"content-type": media_type})


async def _ready(site: Site, _: Call) -> Response:
    await asyncio.to_thread(site.store.check)
    return json_response(Status(status="ready"))


async def _openapi(_: Site, __: Call) -> Response:
    return Response(json.dumps(document()), media_type="application/json")


async def _page(_: Site, __: Call) -> Response:
    return Response(page(), media_type="text/html; charset=utf-8")


HANDLERS: dict[tuple[str, str], Handler] = {
    ("POST", "/v1/predict"): _predict,
    ("POST", "/v1/dicomweb/studies"): _studies,
    ("GET", "/v1/results/{result_id}"): _result,
    ("GET", "/v1/models"): _models,
    ("GET", "/v1/openapi.json"): _openapi,
    ("GET", "/metrics"): _metrics,
    ("GET", "/readyz"): _ready,
    ("GET", "/"): _page,
    **CANDIDATE_HANDLERS,
    **LABEL_HANDLERS,
    **PAGE_HANDLERS,
    **STUDIO_HANDLERS,
    **WORKLIST_HANDLERS,
}
"""(method, route) -> what answers it; ``/healthz`` is answered before there is a site."""
