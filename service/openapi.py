"""The OpenAPI document, from the schemas and the table of routes."""

from __future__ import annotations

from functools import lru_cache

from pydantic.json_schema import models_json_schema

from models import __version__
from service.access import ACCESS
from service.loop_schemas import Candidates
from service.negotiation import GEOJSON
from service.openapi_labels import LABEL_DOCUMENTS, label_operations
from service.openapi_page import page_operations
from service.openapi_parts import ALWAYS, STORE, Json, answer, problems, text
from service.openapi_worklist import WORKLIST_DOCUMENTS, worklist_operations
from service.related import RELATED
from service.schemas import Answer, Login, Models, Problem, SegmentationAnswer, SessionAnswer, Status
from service.stow import DICOM_JSON
from service.wall import IMAGE_TYPES

_REFUSED_WHOLE = (
    "empty_body",
    "unsupported_media_type",
    "too_large",
    "request_timeout",
    "unknown_model",
    "unknown_site",
    "not_acceptable",
    "overloaded",
    "deadline_exceeded",
    "storage_full",
    "storage_unavailable",
)
_IMAGE_CODES = (
    *_REFUSED_WHOLE,
    "not_decodable",
    "inconsistent_image",
    "unsupported_transfer_syntax",
    "no_pixel_data",
    "image_too_large",
    "own_output",
    "multi_frame",
    "region_required",
    "not_tissue",
    "modality_not_accepted",
    "body_part_not_accepted",
    "view_not_accepted",
    "age_not_accepted",
    "too_small",
    "model_output_invalid",
)
_COLLECTION: Json = {
    "description": "The objects as a GeoJSON FeatureCollection, positions in pixels; of models that find objects.",
    "type": "object",
    "required": ["type", "features", "result_id", "verdict", "reasons"],
    "properties": {
        "type": {"const": "FeatureCollection"},
        "features": {"type": "array", "items": {"type": "object"}},
        "result_id": {"type": "string"},
        "verdict": {"enum": ["accept", "review", "refuse"]},
        "reasons": {"type": "array", "items": {"type": "string"}},
    },
}
_ITEMS: Json = {"type": "object", "properties": {"vr": {"const": "SQ"}, "Value": {"type": "array", "items": {"type": "object"}}}}
_STORE_RESPONSE: Json = {
    "description": "Store Instances Response in the DICOM JSON model: 00081199 committed, 00081198 and 0008119A refused.",
    "type": "object",
    "properties": {"00081190": {"type": "object"}} | dict.fromkeys(("00081198", "00081199", "0008119A"), _ITEMS),
}
_STORED = ("not_found", "not_acceptable", *STORE)


def _predicted(description: str) -> Json:
    kinds = [{"$ref": f"#/components/schemas/{name}"} for name in ("Answer", "SegmentationAnswer")]
    content = {"application/json": {"schema": {"anyOf": kinds}}, GEOJSON: {"schema": _COLLECTION}}
    return {"200": {"description": description, "content": content}}


def _stored_instances() -> Json:
    told = {"200": "All were committed.", "202": "A part was committed.", "409": "None was committed; each has its reason."}
    content = {DICOM_JSON: {"schema": _STORE_RESPONSE}}
    return {status: {"description": text, "content": content} for status, text in told.items()}


def _operations() -> dict[tuple[str, str], Json]:
    binary = {"type": "string", "format": "binary"}
    parts = {"image": binary, "regions": {"type": "string", "description": "GeoJSON: polygons that get their own quantities."}}
    form = {"type": "object", "required": ["image"], "properties": parts, "additionalProperties": False}
    content: Json = {name: {"schema": binary} for name in IMAGE_TYPES}
    content["multipart/form-data"] = {"schema": form}
    query = [
        {"name": "model", "in": "query", "schema": {"type": "string"}, "description": "A loaded model; the first by default."},
        {"name": "site", "in": "query", "schema": {"type": "string"}, "description": "A site of the settings."},
        *(
            {"name": name, "in": "query", "schema": {"type": "boolean"}, "description": text}
            for name, text in (
                ("heatmap", "Add a heatmap to the answer; of classifiers."),
                ("label_image", "Add the objects as a 16-bit PNG to the answer; of models that find objects."),
                ("overlay", "Add the image with the objects' outlines to the answer; of models that find objects."),
                ("picture", "Add the image itself to the answer, as it is shown."),
            )
        ),
        {
            "name": "region",
            "in": "query",
            "schema": {"type": "string", "pattern": "^[0-9]{1,9}(,[0-9]{1,9}){3}$"},
            "description": "x,y,width,height: predict this part only; of models that find objects.",
        },
    ]
    result = {"name": "result_id", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"}}
    return {
        ("POST", "/v1/predict"): {
            "summary": "Predict for one image",
            "description": "The same image, model and region give the same result_id and one stored row, however often sent.",
            "parameters": query,
            "requestBody": {"required": True, "content": content},
            "responses": _predicted("The prediction; it is stored.") | problems((*_IMAGE_CODES, *ALWAYS)),
        },
        ("POST", "/v1/dicomweb/studies"): {
            "summary": "Predict for DICOM instances sent by STOW-RS",
            "description": "Each part is analysed and committed on its own; the answer says of each what became of it.",
            "parameters": query[:2],
            "requestBody": {"required": True, "content": {RELATED: {"schema": binary}}},
            "responses": _stored_instances() | problems((*_REFUSED_WHOLE, *ALWAYS)),
        },
        ("GET", "/v1/results/{result_id}"): {
            "summary": "A stored result",
            "parameters": [result],
            "responses": _predicted("As it was answered.") | problems((*_STORED, *ALWAYS)),
        },
        ("GET", "/v1/models"): {
            "summary": "The loaded models with their cards",
            "responses": answer("Models", "The first is the default.") | problems(ALWAYS),
        },
        ("GET", "/v1/candidates"): {
            "summary": "The candidates and how they compare",
            "description": "With the package that answers, on the scans of this site that both predicted.",
            "responses": answer("Candidates", "Each model, with its candidate if it has one.") | problems((*STORE, *ALWAYS)),
        },
        ("GET", "/v1/openapi.json"): {
            "summary": "This document",
            "responses": text("application/json", "OpenAPI 3.1.") | problems(ALWAYS),
        },
        ("GET", "/"): {
            "summary": "This document as a page",
            "responses": text("text/html", "It loads nothing from elsewhere.") | problems(ALWAYS),
        },
        ("GET", "/healthz"): {
            "summary": "Whether the process answers",
            "responses": answer("Status", "It does.") | problems(("method_not_allowed", "internal_error")),
        },
        ("GET", "/readyz"): {
            "summary": "Whether images are taken",
            "responses": answer("Status", "They are.") | problems(("storage_unavailable", *ALWAYS)),
        },
        ("GET", "/metrics"): {
            "summary": "Metrics of all workers, in Prometheus' text format",
            "responses": text("text/plain", "See docs/metrics.md.") | problems(ALWAYS),
        },
    }


@lru_cache(maxsize=1)
def document() -> Json:
    """Return the OpenAPI 3.1 document; every route of :data:`service.access.ACCESS` is in it."""
    pairs = [
        (model, "serialization")
        for model in (
            Answer,
            SegmentationAnswer,
            Models,
            Candidates,
            Problem,
            Status,
            SessionAnswer,
            Login,
            *WORKLIST_DOCUMENTS,
            *LABEL_DOCUMENTS,
        )
    ]
    _, schemas = models_json_schema(pairs, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    paths: Json = {}
    for (method, route), operation in (_operations() | page_operations() | worklist_operations() | label_operations()).items():
        roles = ACCESS[method, route]
        if "public" in roles:
            operation["security"] = []
        else:
            operation["security"] = [{"token": []}]
            operation["x-roles"] = sorted(roles)
        operation["operationId"] = operation["summary"].lower().replace(" ", "_").replace(",", "").replace("'", "")
        paths.setdefault(route, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Overread",
            "version": __version__,
            "description": "Predictions with a calibrated expected loss for each image. Not for diagnosis.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "Needed where tokens are set up."}},
        },
    }
