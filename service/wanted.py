"""What a caller wants of one image, and whether the model can give it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.card import ModelCard, SegmenterCard
from models.errors import Refusal
from models.image import Box, Image, read_box
from service.negotiation import GEOJSON, JSON, choose

FLAGS = ("heatmap", "label_image", "overlay", "picture")
PARAMETERS = {"model", "region", "site", *FLAGS}
"""Query parameters of ``POST /v1/predict``."""


@dataclass(frozen=True)
class Wanted:
    """What a caller wants.

    Attributes
    ----------
    model : str or None
        Name of a loaded model; None is the default.
    heatmap, label_image, overlay, picture : bool
        Pictures in the answer.
    region : Box or None
        The part to predict.
    accept : str
        The Accept header.
    site : str
        The place that the image comes from: a configured name, or empty.
    """

    model: str | None = None
    heatmap: bool = False
    label_image: bool = False
    overlay: bool = False
    picture: bool = False
    region: Box | None = None
    accept: str = ""
    site: str = ""

    def media_type(self, card: ModelCard | SegmenterCard, regions: bool = False) -> str:
        """Return the media type of the answer.

        Parameters
        ----------
        card : ModelCard or SegmenterCard
        regions : bool
            Whether polygons came with the image, each of which gets its own quantities.

        Raises
        ------
        Refusal
            ``bad_request`` for what a model of this kind, or an answer of this type, does not have; ``not_acceptable`` as
            :func:`service.negotiation.choose` says.
        """
        chosen = choose(self.accept, offers(card))
        if isinstance(card, SegmenterCard):
            if self.heatmap:
                raise Refusal("bad_request", "The model finds objects and has no heatmap; ask for overlay or label_image.")
            if chosen == GEOJSON and (self.label_image or self.overlay or self.picture or regions):
                raise Refusal("bad_request", f"Pictures and quantities of regions are in {JSON} only, not in {GEOJSON}.")
        elif self.label_image or self.overlay or self.region is not None or regions:
            raise Refusal("bad_request", "label_image, overlay, region and regions need a model that finds objects.")
        return chosen


def offers(card: ModelCard | SegmenterCard) -> tuple[str, ...]:
    """Return the media types of a model's answers, the default first."""
    return (JSON, GEOJSON) if isinstance(card, SegmenterCard) else (JSON,)


def read_wanted(query: Mapping[str, str], accept: str, site: str = "") -> Wanted:
    """Read a query, whose names are among :data:`PARAMETERS`.

    Raises
    ------
    Refusal
        ``bad_request`` for a value that is none.
    """
    flags = {name: read_flag(query, name) for name in FLAGS}
    region = read_box(query["region"]) if "region" in query else None
    return Wanted(query.get("model"), region=region, accept=accept, site=site, **flags)


def read_flag(query: Mapping[str, str], name: str) -> bool:
    """Read a parameter that is true or false; without it, false.

    Raises
    ------
    Refusal
        ``bad_request`` for another value.
    """
    if query.get(name, "false") not in {"true", "false"}:
        raise Refusal("bad_request", f"{name} must be true or false.")
    return query.get(name) == "true"


def region_within(region: Box | None, image: Image) -> Box | None:
    """Check a region against the image; the whole image is None, so that it has one result, however it was asked for.

    Of a slide the region stays what it is: there is no other way to ask for it.

    Raises
    ------
    Refusal
        ``bad_request`` for a region that is not inside.
    """
    if region is None:
        return None
    x, y, width, height = region
    if not width or not height or x + width > image.columns or y + height > image.rows:
        raise Refusal("bad_request", f"region must lie inside the image of {image.columns} x {image.rows} pixels.")
    return None if (width, height) == (image.columns, image.rows) and image.region is None else region
