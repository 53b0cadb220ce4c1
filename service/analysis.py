"""One image, from its bytes to the stored and answered result: the one file that calls the rest, in order."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from models.batch import AnyPredictor
from models.errors import Refusal
from models.image import Box, Image
from models.imaging import read_image, sniff
from models.predictor import Predictor
from models.preprocess import check_accepted, preprocess
from models.triage import Judgement, judge
from service.access import Access
from service.analysed import Analysis
from service.answers import Reply, card_of
from service.audit import Audit
from service.bodies import AT_ONCE, Bodies
from service.callers import Proxy
from service.dicom_results import is_ours
from service.engine import Engine
from service.evidence import heatmap_of
from service.health import Health
from service.items import Draft
from service.lineup import Lineup, Served
from service.loop import Loop
from service.origins import Origin, Origins
from service.pseudonyms import Whose
from service.schemas import Extras, LoadedModel, Models
from service.segmentation import beside, read_regions, record_of
from service.sessions import Sessions
from service.settings import Settings
from service.shadow import Job, Shadow
from service.shown import shown_picture
from service.store import Store, Stored, result_id, result_row
from service.telemetry import Telemetry
from service.wall import Upload
from service.wanted import Wanted, region_within

if TYPE_CHECKING:
    from models.segmenter import SegmenterPredictor


class Site:
    """Everything that one worker needs: models, store, threads, tokens, metrics.

    Raises
    ------
    Refusal
        ``package_invalid``, ``config_invalid`` for settings or tokens, ``storage_*``. No connection stays open then.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.proxy = Proxy.read(settings)
        self.origins = Origins(settings)
        self.access = Access.read(settings.tokens, settings.rate_limit_per_minute, proxied=self.proxy is not None)
        self.telemetry = Telemetry()
        with ExitStack() as refused:
            self.store = refused.enter_context(closing(Store(settings.store)))
            self.audit = Audit(self.store)
            self.access.check_sites(settings.sites)
            self.loop = Loop(settings, self.store, self.telemetry)
            self.health = Health(self.store)
            self.lineup = Lineup(settings, self.store, self.telemetry)
            self.sessions = Sessions(self.store, self.access, settings.session_hours)
            self.bodies = Bodies(AT_ONCE * settings.max_body_bytes)
            self.engine = Engine(settings.threads, settings.queue, settings.deadline_seconds, self.telemetry)
            self.shadow = Shadow(self.lineup, self.engine, self.store, self.telemetry)
            refused.pop_all()

    def close(self) -> None:
        """Finish admitted work, then close the store."""
        self.engine.close()
        self.shadow.close()
        self.lineup.close()
        self.store.close()

    def models(self) -> Models:
        """Return the loaded models with their cards; the first is the default."""
        entries = []
        for number, served in enumerate(self.lineup.current.values()):
            predictor, card = served.predictor, served.predictor.card
            entries.append(
                LoadedModel(
                    name=card.name,
                    version=card.version,
                    sha256=predictor.sha256,
                    provider=predictor.provider,
                    default=number == 0,
                    limits=served.limits,
                    card=card.model_dump(mode="json"),
                )
            )
        return Models(models=entries)

    def analyse(self, upload: Upload, wanted: Wanted, served: Served | None = None) -> Analysis:
        """Analyse one image up to what is to be stored; blocking, for a thread of the engine. :meth:`conclude` follows.

        Parameters
        ----------
        upload : Upload
        wanted : Wanted
        served : Served, optional
            The package, where a request with several images chose it once for all of them; else the current one.

        Raises
        ------
        Refusal
            As :meth:`service.wanted.Wanted.media_type`, :func:`models.imaging.read_image`,
            :func:`models.preprocess.check_accepted`, the predictor and the store say.
        """
        served = served or self.served(wanted.model)  # looked up once: another may be promoted meanwhile
        predictor = served.predictor
        media_type = wanted.media_type(predictor.card, upload.regions is not None)
        if upload.media_type is not None and sniff(upload.body) != upload.media_type:
            raise Refusal("unsupported_media_type", f"The body is not {upload.media_type}, as its Content-Type says.")
        started = time.perf_counter()
        spec = predictor.card.input
        target = (spec.height, spec.width) if isinstance(predictor, Predictor) else None
        image = read_image(upload.body, target=target, region=wanted.region)
        if wanted.picture and image.region is not None:
            raise Refusal("bad_request", "A slide has no picture of the whole; ask for overlay.")
        if image.header is not None and is_ours(image.header):
            raise Refusal("own_output")
        notes = [code for code, _ in check_accepted(image, spec)]
        region = region_within(wanted.region, image)
        uid = _uid(image)
        key = result_id(image.sha256, predictor.sha256, region)
        stored = self.store.find(key)
        known = self.store.verdict(key, uid, served.limits_sha256) if stored else None
        extras, refused = Extras(), None
        if isinstance(predictor, Predictor):
            stored, extras = self._classify(predictor, served.row, image, notes, stored, wanted.heatmap, started)
        else:
            regions = read_regions(upload.regions, image, region)
            stored = self._segment(predictor, served.row, image, notes, stored, region, started)
            try:
                extras = beside(stored.result, image, wanted, regions)
            except Refusal as refusal:  # the network's work is kept all the same: it is committed first
                refused = refusal
        if wanted.picture and refused is None:
            extras = replace(extras, picture=shown_picture(image, upload.body))
        verdict = known[1] if known else None
        part = region is not None or image.region is not None  # of an image, or of a slide: an item is a whole image
        draft = None if part else self._draft(upload.body, image, stored, served, uid, verdict, wanted.site)
        return Analysis(upload, region, image, stored, served, uid, verdict, extras, media_type, refused, draft, wanted.site)

    def score_again(self, image: Image, served: Served, site: str, patient: str) -> None:
        """Predict for a kept image of the worklist, commit the result, and give it to the item; blocking.

        Raises
        ------
        Refusal
            As :meth:`analyse` and :meth:`conclude` say.
        """
        predictor, started = served.predictor, time.perf_counter()
        notes = [code for code, _ in check_accepted(image, predictor.card.input)]
        stored = self.store.find(result_id(image.sha256, predictor.sha256))
        if isinstance(predictor, Predictor):
            stored, _ = self._classify(predictor, served.row, image, notes, stored, False, started)
        else:
            stored = self._segment(predictor, served.row, image, notes, stored, None, started)
        draft = Draft(image.sha256, predictor.card.name, image.rows, image.columns, None, {}, patient, site, always=True)
        self._record(stored, served, _uid(image), draft, Origin(site), None, scored_again=True)

    def _draft(
        self, body: bytes, image: Image, stored: Stored, served: Served, uid: str | None, known: Judgement | None, site: str
    ) -> Draft | None:
        """Keep the image where it is to become an item of the worklist."""
        verdict = (known or judge(stored.prediction, served.limits, stored.result["notes"])).verdict
        if known is None and verdict == "accept" and self.store.reused(uid, image.sha256):
            verdict = "review"
        card, sha256 = served.predictor.card, served.predictor.sha256
        return self.loop.intake.draft(body, image, card, sha256, verdict, site)

    def conclude(self, analysis: Analysis) -> Reply:
        """Commit an analysis, then decide its answer; blocking, for the engine's thread that commits.

        Raises
        ------
        Refusal
            ``storage_full`` or ``storage_unavailable``: nothing was stored. What was refused beside the result: it is stored.
        """
        judgement, whose = analysis.known, self.loop.pseudonyms.whose(analysis.image)
        if (
            judgement is None
            or analysis.draft is not None
            or (whose is not None and self.store.restated(analysis.uid, analysis.image.sha256, whose))
        ):
            origin = self.origins.of(analysis.site, analysis.image)
            judgement = self._record(analysis.stored, analysis.served, analysis.uid, analysis.draft, origin, whose)
        if analysis.known is not None:
            self.telemetry.repeated.labels(analysis.served.predictor.card.name).inc()
        self.shadow.offer(Job(analysis.upload.body, analysis.region, analysis.served, analysis.stored, judgement))
        if analysis.refused is not None:
            raise analysis.refused
        stored, card = analysis.stored, analysis.served.predictor.card
        return Reply(stored, card, analysis.uid, judgement, analysis.extras, analysis.media_type)

    def served(self, model: str | None) -> Served:
        """Return the current package of a model name; None is the default.

        Raises
        ------
        Refusal
            ``unknown_model``.
        """
        current = self.lineup.current
        name = next(iter(current)) if model is None else model
        if name not in current:
            raise Refusal("unknown_model")
        return current[name]

    def predictor(self, model: str | None) -> AnyPredictor:
        """Return the predictor of :meth:`served`."""
        return self.served(model).predictor

    def _classify(
        self,
        predictor: Predictor,
        model: dict[str, Any],
        image: Image,
        notes: list[str],
        stored: Stored | None,
        heatmap: bool,
        started: float,
    ) -> tuple[Stored, Extras]:
        """Return what is stored, and the heatmap where it is wanted; the network runs for what is not there."""
        if stored is not None and not heatmap:
            return stored, Extras()
        name = predictor.card.name
        tensor = preprocess(image, predictor.card.input)
        self.telemetry.decode.labels(image.media_type).observe(time.perf_counter() - started)
        running = time.perf_counter()
        (prediction,) = predictor.predict_tensor(tensor, heatmap=heatmap)
        self.telemetry.inference.labels(name).observe(time.perf_counter() - running)
        picture = heatmap_of(prediction, predictor.card, image) if heatmap else None
        return stored or Stored(result_row(image, prediction, predictor, notes), model), Extras(heatmap=picture)

    def _segment(
        self,
        predictor: SegmenterPredictor,
        model: dict[str, Any],
        image: Image,
        notes: list[str],
        stored: Stored | None,
        region: Box | None,
        started: float,
    ) -> Stored:
        """Return what is stored; the network runs where that is nothing."""
        if stored is not None:
            return stored
        name = predictor.card.name
        self.telemetry.decode.labels(image.media_type).observe(time.perf_counter() - started)
        running = time.perf_counter()
        segmentation, _ = predictor.predict(image, region)
        self.telemetry.inference.labels(name).observe(time.perf_counter() - running)
        record = record_of(segmentation, image, region)
        return Stored(result_row(image, segmentation, predictor, notes, record), model)

    def _record(
        self,
        stored: Stored,
        served: Served,
        uid: str | None,
        draft: Draft | None,
        origin: Origin,
        whose: Whose | None,
        *,
        scored_again: bool = False,
    ) -> Judgement:
        limits, prediction, notes = served.limits, stored.prediction, stored.result["notes"]
        started = time.perf_counter()
        with self.loop.intake.committing(draft, stored.result, scored_again=scored_again) as then:
            new, judgement = self.store.record(
                stored.result,
                uid,
                served.limits_sha256,
                lambda reused: judge(prediction, limits, [*notes, "uid_reused"] if reused else notes),
                origin,
                then,
                scored_again,
                whose,
            )
        self.telemetry.store.observe(time.perf_counter() - started)
        name = served.predictor.card.name
        if new and not scored_again:
            for reason in judgement.reasons:
                self.telemetry.verdicts.labels(name, judgement.verdict, reason).inc()
        return judgement

    def result(self, key: str, accept: str) -> Reply:
        """Return a stored result with its latest verdict; blocking.

        Raises
        ------
        Refusal
            ``not_found`` if there is none of that id, ``not_acceptable`` if there is no answer of a type in ``accept``.
        """
        stored = self.store.find(key)
        latest = self.store.verdict(key)
        if stored is None or latest is None:
            raise Refusal("not_found", "There is no result of that id.")
        card = card_of(stored)
        return Reply(stored, card, latest[0], latest[1], Extras(), Wanted(accept=accept).media_type(card))


def _uid(image: Image) -> str | None:
    """Return the SOP Instance UID, or None where the image states none that could be one (64 characters at most).

    One with a control character is refused (``inconsistent_image``): PostgreSQL keeps no NUL, and cut off there it is another's.
    """
    uid = str(image.header.get("SOPInstanceUID", "")).strip() if image.header is not None else ""
    if not uid.isprintable():
        raise Refusal("inconsistent_image", "The SOP Instance UID holds a character that no UID has.")
    return uid if 0 < len(uid) <= 64 else None
