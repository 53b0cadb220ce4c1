"""Where the evidence for a finding lies: drawn with an answer, or anew from the kept pixels of an item."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from models.card import ModelCard
from models.errors import Refusal
from models.image import Image
from models.postprocess import Prediction, heatmap_png
from models.predictor import Predictor
from models.preprocess import preprocess
from models.rendered import restore
from service.loop_schemas import Item
from service.schemas import Heatmap

if TYPE_CHECKING:
    from service.analysis import Site


def heatmap_of(prediction: Prediction, card: ModelCard, image: Image) -> Heatmap:
    """Return the picture for the first finding of a prediction that was made with a heatmap."""
    assert prediction.heatmap is not None
    label = card.output.findings[0].label
    png, peak = heatmap_png(prediction.heatmap, card, label, image.rows, image.columns)
    return Heatmap(label=label, media_type="image/png", peak=peak, data=base64.b64encode(png).decode())


def item_heatmap(site: Site, item: Item) -> Heatmap | None:
    """Draw the heatmap of an item from its kept pixels; nothing is stored.

    None where it cannot be had: another package is current than the one that scored the item, or the pixels are gone.

    Raises
    ------
    Refusal
        ``bad_request`` of a model that finds objects.
    """
    served = site.lineup.current.get(item.model.name)
    if served is None or served.predictor.sha256 != item.model.sha256:
        return None
    predictor = served.predictor
    if not isinstance(predictor, Predictor):
        raise Refusal("bad_request", "The model finds objects and has no heatmap.")
    png = site.loop.kept.read(item.image_sha256)
    if png is None:
        return None
    # Only pixels and spacing decide what the network sees
    image = restore(png, header=None, spacing_mm=item.pixel_spacing_mm, media_type="image/png", sha256=item.image_sha256)
    tensor = preprocess(image, predictor.card.input)
    (prediction,) = predictor.predict_tensor(tensor, heatmap=True)
    return heatmap_of(prediction, predictor.card, image)
