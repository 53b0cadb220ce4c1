"""Which scans become items of the worklist, and the keeping of their pixels, between the prediction and the commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import sqlalchemy as sa

from models.card import ModelCard, SegmenterCard
from models.errors import Refusal
from models.image import Image
from models.imaging import read_image
from models.rendered import render
from models.triage import Judgement
from service.facts import facts_of
from service.items import DONE, WAITING, Draft, Items, Outcome, Row
from service.kept import Kept
from service.pseudonyms import Pseudonyms
from service.telemetry import Telemetry, log_fault

Then = Callable[[sa.Connection, Judgement], None]


class Intake:
    """Keeps what an expert should see. Whatever fails here is counted, and costs the item, never the answer.

    Parameters
    ----------
    items : Items
    kept : Kept
    pseudonyms : Pseudonyms
    share : float
        Of the accepted scans that are kept as well, drawn at random.
    telemetry : Telemetry
    """

    def __init__(self, items: Items, kept: Kept, pseudonyms: Pseudonyms, share: float, telemetry: Telemetry) -> None:
        self._items, self._kept, self._pseudonyms = items, kept, pseudonyms
        self._share, self._telemetry = share, telemetry

    def draft(
        self, body: bytes, image: Image, card: ModelCard | SegmenterCard, model_sha256: str, verdict: str, site: str
    ) -> Draft | None:
        """Keep the pixels of a scan that will become an item; None for one that will not, or need not.

        Parameters
        ----------
        body : bytes
            The file that was sent; it is decoded once more where the model needed less than all of it.
        image : Image
        card : ModelCard or SegmenterCard
        model_sha256 : str
            Of the package that predicted.
        verdict : str
            To be expected; the commit decides.
        site : str
            A configured name, or empty.
        """
        drawn = verdict == "accept" and self._pseudonyms.drawn(image.sha256, self._share)
        if verdict == "accept" and not drawn:
            return None
        known = self._items.known(image.sha256, card.name)
        if known.state == DONE or (known.state in WAITING and known.model_sha256 == model_sha256):
            return None
        size, facts = None, Row()
        if not known.kept:
            try:
                size, facts = self._keep(body, image, card)
            except Refusal as refusal:  # of the whole image, where the model needed less
                self._miss("too_large" if refusal.code == "image_too_large" else "failed")
                return None
            except OSError:
                self._miss("disk")
                return None
            except Exception as error:  # noqa: BLE001  (whatever keeping can meet, the prediction is there and is answered)
                log_fault(error)
                self._miss("failed")
                return None
            if size is None:
                self._miss("full")
                return None
        patient = self._pseudonyms.patient(image)
        return Draft(image.sha256, card.name, image.rows, image.columns, size, facts, patient, site, drawn)

    def _keep(self, body: bytes, image: Image, card: ModelCard | SegmenterCard) -> tuple[int | None, Row]:
        if not self._items.room():
            return None, {}
        whole = image if image.pixels.shape[:2] == (image.rows, image.columns) else read_image(body)
        picture = render(whole)
        png = picture.png()
        facts = facts_of(image, picture, card.input).model_dump(mode="json")
        self._kept.write(image.sha256, png)
        return len(png), facts

    @contextmanager
    def committing(self, draft: Draft | None, result: Row, *, scored_again: bool = False) -> Iterator[Then | None]:
        """Yield what makes the item of a draft within the transaction that commits its result; None where there is no draft.

        A file that was written for it, and that no item came to name, is removed in the end. Where an item is scored again
        whose pixels went meanwhile, it raises ``not_found``, which undoes the commit: an erased image must not come back.
        """
        if draft is None:
            yield None
            return
        outcome: Outcome = "lost"

        def then(connection: sa.Connection, judgement: Judgement) -> None:
            nonlocal outcome
            outcome = self._items.add(connection, draft, result, judgement.verdict)
            if outcome and scored_again:
                raise Refusal("not_found", "The pixels are not kept any more.")

        committed = False
        try:
            yield then
            committed = True
        finally:
            if draft.size is not None and (outcome or not committed):
                self._discard(draft)
        if draft.size is not None and outcome:
            self._miss("full" if outcome == "full" else "failed")

    def _discard(self, draft: Draft) -> None:
        """Remove a file; where that fails, the next sweep does it."""
        with suppress(Refusal, OSError):
            self._items.discard(draft.image_sha256)

    def _miss(self, reason: str) -> None:
        self._telemetry.items_missed.labels(reason).inc()
