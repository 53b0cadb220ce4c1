"""What is answered: a stored result, the card of its model, one instance of it and a verdict, put together."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from models.card import AnyCard, ModelCard, SegmenterCard
from models.triage import REASONS, Judgement, Verdict, called_objects, positives
from models.uncertainty import predicted_loss_unseen
from service.negotiation import GEOJSON
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


def card_of(stored: Stored) -> ModelCard | SegmenterCard:
    """Return the card of the model that made a result."""
    return _CARD.validate_python(stored.model["card"])


@dataclass(frozen=True)
class Reply:
    """An answer that is decided, and not yet written down.

    Attributes
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

    stored: Stored
    card: ModelCard | SegmenterCard
    uid: str | None
    judgement: Judgement
    extras: Extras
    media_type: str

    @property
    def slow(self) -> bool:
        """Whether it takes long to write down: some thousand polygons may be in it."""
        return isinstance(self.card, SegmenterCard)

    def answer(self) -> Answer | SegmentationAnswer:
        """Return the answer as a document, whatever its media type."""
        return _classification(self, self.card) if isinstance(self.card, ModelCard) else _segmentation(self, self.card)

    def text(self) -> str:
        """Return the answer as it is sent."""
        if isinstance(self.card, ModelCard):
            document = _classification(self, self.card).model_dump(mode="json")
        elif self.media_type == GEOJSON:
            document = _collection(self, self.card)
        else:
            return _segmentation(self, self.card).model_dump_json()  # in a tenth of the other's time
        # allow_nan=False: a value that is not a number must fail here, not become null.
        return json.dumps(document, allow_nan=False)


def _head(reply: Reply) -> dict[str, Any]:
    row, model, judgement = reply.stored.result, reply.stored.model, reply.judgement
    return {
        "result_id": row["id"],
        "image_sha256": row["image_sha256"],
        "sop_instance_uid": reply.uid,
        "model": ModelBlock(
            name=model["name"],
            version=model["version"],
            sha256=model["sha256"],
            provider=row["provider"],
            intended_use=reply.card.intended_use.model_dump(),
        ),
        "task": reply.card.task,
        "verdict": judgement.verdict,
        "reasons": [Reason(code=code, message=REASONS[code]) for code in judgement.reasons],
    } | {name: row[name] for name in _DOUBTS}


def findings(stored: Stored, card: ModelCard, verdict: Verdict) -> list[FindingAnswer]:
    """Return the findings of a classifier's result under a verdict."""
    called = positives(stored.prediction, card, verdict)
    return [
        FindingAnswer(
            label=item.label,
            probability=stored.result["probabilities"][item.label],
            operating_point=item.operating_point,
            positive=called[item.label],
        )
        for item in card.output.findings
    ]


def _classification(reply: Reply, card: ModelCard) -> Answer:
    return Answer(
        **_head(reply),
        predicted_loss_unseen=predicted_loss_unseen(reply.stored.result["entropy"], card.calibration),
        findings=findings(reply.stored, card, reply.judgement.verdict),
        heatmap=reply.extras.heatmap,
        picture=reply.extras.picture,
    )


def _segmentation(reply: Reply, card: SegmenterCard) -> SegmentationAnswer:
    record, extras = unpack(reply.stored.result["segmentation"]), reply.extras
    refused = reply.judgement.verdict == "refuse"
    regions = extras.regions
    if refused and regions is not None:
        regions = [RegionAnswer(name=region.name, quantities=None) for region in regions]
    return SegmentationAnswer(
        **_head(reply),
        region=record.region,
        object_label=card.output.label,
        objects=[] if refused else record.objects,
        quantities=None if refused else record.quantities,
        regions=regions,
        tiles=record.tiles,
        doubtful_regions=record.doubtful_regions,
        label_image=None if refused else extras.label_image,
        overlay=None if refused else extras.overlay,
        picture=extras.picture,
    )


def _collection(reply: Reply, card: SegmenterCard) -> dict[str, Any]:
    from models.geojson import feature_collection

    segmentation, judgement = restore(reply.stored.result, labelled=False), reply.judgement
    called = replace(segmentation, objects=called_objects(segmentation.objects, judgement.verdict))
    # Members that GeoJSON does not know are allowed in it (RFC 7946, section 6.1), and passed over by QuPath.
    return feature_collection(called, card.output.label) | {
        "result_id": reply.stored.result["id"],
        "verdict": judgement.verdict,
        "reasons": list(judgement.reasons),
    }
