"""JSON in and out of the routes of labels."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.card import Fraction
from service.loop_schemas import Digest, ItemId, LeaseId, State

Standing = Literal["reader", "adjudicator"]
Kind = Literal["classes", "annotation"]
Source = Literal["page", "api", "import", "label-studio"]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
Classes = Annotated[dict[Annotated[str, Field(min_length=1, max_length=128)], bool], Field(min_length=1, max_length=100)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LabelIn(_Document):
    """A label, of an item or of any stored result.

    ``image_sha256`` and ``model_sha256`` are those that the reader was shown; of ``item_id`` and ``result_id`` one is enough.
    Say what holds by ``classes`` (which one is true), or by ``annotation`` (GeoJSON as in docs/annotation.md, positions in
    pixels); with neither, ``model_was_right`` confirms what was shown, word for word. Of classes it is worked out: true where
    the class is the one that the model called. ``replaces`` is the caller's own earlier label. ``shown_earlier`` says that the
    reader was shown the image before another package scored it.
    """

    item_id: ItemId | None = None
    result_id: Digest | None = None
    image_sha256: Digest
    model_sha256: Digest
    lease_id: LeaseId | None = None
    classes: Classes | None = None
    annotation: dict[str, Any] | None = None
    model_was_right: bool
    replaces: Digest | None = None
    shown_earlier: bool = False
    seconds: Seconds | None = None
    source: Literal["page", "api"] = "api"

    @model_validator(mode="after")
    def _of_something(self) -> LabelIn:
        if self.item_id is None and self.result_id is None:
            raise ValueError("item_id or result_id is needed")
        if self.classes is not None and self.annotation is not None:
            raise ValueError("classes or annotation, not both")
        if self.classes is None and self.annotation is None and not self.model_was_right:
            raise ValueError("a correction needs classes or annotation")
        return self


class LikenessAnswer(_Document):
    """How alike the labels of an item's readers are, the least alike two of them; ``value`` is null where nothing compares."""

    measure: Literal["same_class", "dice", "f1"]
    value: Fraction | None
    agree: bool


class LabelAnswer(_Document):
    """A label that is stored.

    ``lease`` says how its reader held the item: "held", "expired" (nobody else took it meanwhile), "none"; null where it is no
    item, or the answer is given once more.
    """

    label_id: Digest
    item_id: ItemId | None
    item_state: State | None
    standing: Standing
    lease: Literal["held", "expired", "none"] | None
    agreement: LikenessAnswer | None


class LabelRecord(_Document):
    """A label as it is stored. ``in_force``: no later label of its reader replaces it."""

    label_id: Digest
    item_id: ItemId | None
    result_id: Digest
    image_sha256: Digest
    model_sha256: Digest
    reader: str
    standing: Standing
    kind: Kind
    document: dict[str, Any]
    model_was_right: bool
    source: Source
    replaces: Digest | None
    seconds: Seconds | None
    created_at: datetime
    in_force: bool


class LabelList(_Document):
    """Labels, in the order in which they were given."""

    labels: list[LabelRecord]
