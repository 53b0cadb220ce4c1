"""What is answered: a stored result, the card of its model, one instance of it and a verdict, put together."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, TypeAdapter

from models.card import AnyCard, ModelCard, SegmenterCard
from models.triage import REASONS, Judgement, called_objects, positives
from service.negotiation import GEOJSON, JSON
from service.schemas import (
    Answer,
    Extras,
    FindingAnswer,
    ModelBlock,
    Reason,
    RegionAnswer,
    SegmentationAnswer,
)
from service.segmentation import restore, unpack
from service.store import Stored

_CARD: TypeAdapter[ModelCard | SegmenterCard] = TypeAdapter(AnyCard)
_DOUBTS = ("predicted_loss", "loss_percentile", "domain_distance", "domain_percentile", "entropy")


@dataclass(frozen=True)
class Reply:
    """An answer and its media type."""

    document: BaseModel | dict[str, Any]
    media_type: str = JSON

    def text(self) -> str:
        """Return the answer as it is sent."""
        if isinstance(self.document, SegmentationAnswer):
            return self.document.model_dump_json()  # some thousand polygons: a tenth of the other's time
        document = self.document.model_dump(mode="json") if isinstance(self.document, BaseModel) else self.document
        # allow_nan=False: a value that is not a number must fail here, not become null.
        return json.dumps(document, allow_nan=False)


def card_of(stored: Stored) -> ModelCard | SegmenterCard:
    """Return the card of the model that made a result."""
    return _CARD.validate_python(stored.model["card"])


def reply(
    stored: Stored,
    card: ModelCard | SegmenterCard,
    uid: str | None,
    judgement: Judgement,
    extras: Extras,
    media_type: str,
) -> Reply:
    """Put an answer together.

    Parameters
    ----------
    stored : Stored
    card : ModelCard or SegmenterCard
        Of the model that made the result.
    uid : str or None
        SOP Instance UID of the instance that is answered.
    judgement : Judgement
    extras : Extras
    media_type : str
        One of those of :func:`service.wanted.offers`.
    """
    if isinstance(card, ModelCard):
        return Reply(_classification(stored, card, uid, judgement, extras))
    if media_type == GEOJSON:
        return Reply(_collection(stored, card.output.label, judgement), GEOJSON)
    return Reply(_segmentation(stored, card, uid, judgement, extras))


def _head(stored: Stored, card: ModelCard | SegmenterCard, uid: str | None, judgement: Judgement) -> dict[str, Any]:
    row, model = stored.result, stored.model
    return {
        "result_id": row["id"],
        "image_sha256": row["image_sha256"],
        "sop_instance_uid": uid,
        "model": ModelBlock(
            name=model["name"],
            version=model["version"],
            sha256=model["sha256"],
            provider=row["provider"],
            intended_use=card.intended_use.model_dump(),
        ),
        "task": card.task,
        "verdict": judgement.verdict,
        "reasons": [Reason(code=code, message=REASONS[code]) for code in judgement.reasons],
    } | {name: row[name] for name in _DOUBTS}


def _classification(stored: Stored, card: ModelCard, uid: str | None, judgement: Judgement, extras: Extras) -> Answer:
    called = positives(stored.prediction, card, judgement.verdict)
    return Answer(
        **_head(stored, card, uid, judgement),
        findings=[
            FindingAnswer(
                label=item.label,
                probability=stored.result["probabilities"][item.label],
                operating_point=item.operating_point,
                positive=called[item.label],
            )
            for item in card.output.findings
        ],
        heatmap=extras.heatmap,
    )


def _segmentation(
    stored: Stored, card: SegmenterCard, uid: str | None, judgement: Judgement, extras: Extras
) -> SegmentationAnswer:
    record = unpack(stored.result["segmentation"])
    refused = judgement.verdict == "refuse"
    regions = extras.regions
    if refused and regions is not None:
        regions = [RegionAnswer(name=region.name, quantities=None) for region in regions]
    return SegmentationAnswer(
        **_head(stored, card, uid, judgement),
        region=record.region,
        object_label=card.output.label,
        objects=[] if refused else record.objects,
        quantities=None if refused else record.quantities,
        regions=regions,
        tiles=record.tiles,
        doubtful_regions=record.doubtful_regions,
        label_image=None if refused else extras.label_image,
        overlay=None if refused else extras.overlay,
    )


def _collection(stored: Stored, label: str, judgement: Judgement) -> dict[str, Any]:
    from models.geojson import feature_collection

    segmentation = restore(stored.result)
    called = replace(segmentation, objects=called_objects(segmentation.objects, judgement.verdict))
    collection = feature_collection(called, label)
    # Members that GeoJSON does not know are allowed in it (RFC 7946, section 6.1), and passed over by QuPath.
    return collection | {
        "result_id": stored.result["id"],
        "verdict": judgement.verdict,
        "reasons": list(judgement.reasons),
    }
