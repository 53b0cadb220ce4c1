"""One image, from its bytes to the stored and answered result: the one file that calls the rest, in order."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.card import ModelCard, Triage
from models.errors import Refusal
from models.image import Image
from models.imaging import read_image, sniff
from models.postprocess import Prediction, heatmap_png
from models.predictor import Predictor
from models.preprocess import check_accepted, preprocess
from models.triage import REASONS, Judgement, judge, positives
from service.access import Access
from service.engine import Engine
from service.schemas import Answer, FindingAnswer, Heatmap, LoadedModel, ModelBlock, Models, Reason
from service.settings import Settings, triage_sha256
from service.store import Store, Stored, model_row, result_id, result_row
from service.telemetry import Telemetry


@dataclass(frozen=True)
class Analysis:
    """One image between its inference and its commit.

    Attributes
    ----------
    stored : Stored
        What is stored of it, or will be.
    predictor : Predictor
    uid : str or None
        SOP Instance UID.
    limits : Triage
        In force at this site, and their digest.
    known : Judgement or None
        The verdict, where it is in the store already.
    heatmap : Heatmap or None
    """

    stored: Stored
    predictor: Predictor
    uid: str | None
    limits: Triage
    limits_sha256: str
    known: Judgement | None
    heatmap: Heatmap | None


class Site:
    """Everything that one worker needs: models, store, threads, tokens, metrics.

    Raises
    ------
    Refusal
        ``package_invalid`` for a model that is not as released, ``config_invalid`` for settings or tokens that cannot be
        used, ``storage_*`` for a database that cannot be opened.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.access = Access.read(settings.tokens, settings.rate_limit_per_minute)
        loaded = [Predictor.load(folder) for folder in settings.models]
        self.predictors = {predictor.card.name: predictor for predictor in loaded}
        if len(self.predictors) < len(loaded):
            raise Refusal("config_invalid", "OVERREAD_MODELS: two model packages have the same name.")
        # The same for every image of a model, so worked out once.
        self._rows = {name: model_row(predictor) for name, predictor in self.predictors.items()}
        self._limits = {name: settings.triage(predictor.card.triage) for name, predictor in self.predictors.items()}
        self._digests = {name: triage_sha256(limits) for name, limits in self._limits.items()}
        self.telemetry = Telemetry()
        self.store = Store(settings.database)
        self.engine = Engine(settings.threads, settings.queue, settings.deadline_seconds, self.telemetry)
        for predictor in loaded:
            self.store.register(predictor)
            self.telemetry.loaded(predictor)

    def close(self) -> None:
        """Finish admitted work, then close the store."""
        self.engine.close()
        self.store.close()

    def models(self) -> Models:
        """Return the loaded models with their cards; the first is the default."""
        entries = []
        for number, predictor in enumerate(self.predictors.values()):
            card = predictor.card
            entries.append(
                LoadedModel(
                    name=card.name,
                    version=card.version,
                    sha256=predictor.sha256,
                    provider=predictor.provider,
                    default=number == 0,
                    card=card.model_dump(mode="json"),
                )
            )
        return Models(models=entries)

    def analyse(self, body: bytes, media_type: str | None, model: str | None, heatmap: bool) -> Analysis:
        """Analyse one image up to what is to be stored; blocking, for a thread of the engine. :meth:`conclude` follows.

        Parameters
        ----------
        body : bytes
            The image.
        media_type : str or None
            As declared by the caller; None where it declared none.
        model : str or None
            Name of a loaded model; None is the default.
        heatmap : bool
            Whether the answer holds one.

        Raises
        ------
        Refusal
            As :func:`models.imaging.read_image`, :func:`models.preprocess.check_accepted`, the predictor and the store say.
        """
        predictor = self._predictor(model)
        if media_type is not None and sniff(body) != media_type:
            raise Refusal("unsupported_media_type", f"The body is not {media_type}, as its Content-Type says.")
        started = time.perf_counter()
        spec = predictor.card.input
        image = read_image(body, target=(spec.height, spec.width))
        notes = [code for code, _ in check_accepted(image, spec)]
        uid = _uid(image)
        key = result_id(image.sha256, predictor.sha256)
        limits, digest = self._limits[predictor.card.name], self._digests[predictor.card.name]
        stored = self.store.find(key)
        known = self.store.verdict(key, uid, digest) if stored else None
        picture = None
        if stored is None or heatmap:
            tensor, _ = preprocess(image, spec)
            self.telemetry.decode.labels(image.media_type).observe(time.perf_counter() - started)
            prediction = self._predict(predictor, tensor, heatmap)
            picture = _heatmap(prediction, predictor.card, image) if heatmap else None
            stored = stored or Stored(result_row(image, prediction, predictor, notes), self._rows[predictor.card.name])
        return Analysis(stored, predictor, uid, limits, digest, known[1] if known else None, picture)

    def conclude(self, analysis: Analysis) -> Answer:
        """Commit an analysis, then make its answer; blocking, for the engine's thread that commits.

        Raises
        ------
        Refusal
            ``storage_full`` or ``storage_unavailable``: nothing was stored.
        """
        judgement = analysis.known
        if judgement is None:
            judgement = self._record(analysis)
        else:
            self.telemetry.repeated.labels(analysis.predictor.card.name).inc()
        return answer(analysis.stored, analysis.predictor.card, analysis.uid, judgement, analysis.heatmap)

    def _predictor(self, model: str | None) -> Predictor:
        name = model or next(iter(self.predictors))
        if name not in self.predictors:
            raise Refusal("unknown_model")
        return self.predictors[name]

    def _predict(self, predictor: Predictor, tensor: NDArray[np.float32], heatmap: bool) -> Prediction:
        started = time.perf_counter()
        (prediction,) = predictor.predict_tensor(tensor, heatmap=heatmap)
        self.telemetry.inference.labels(predictor.card.name).observe(time.perf_counter() - started)
        return prediction

    def _record(self, analysis: Analysis) -> Judgement:
        limits, prediction = analysis.limits, analysis.stored.prediction
        notes = analysis.stored.result["notes"]
        started = time.perf_counter()
        new, judgement = self.store.record(
            analysis.stored.result,
            analysis.uid,
            analysis.limits_sha256,
            lambda reused: judge(prediction, limits, [*notes, "uid_reused"] if reused else notes),
        )
        self.telemetry.store.observe(time.perf_counter() - started)
        name = analysis.predictor.card.name
        if new:
            self.telemetry.loss_percentile.labels(name).observe(prediction.loss_percentile)
            self.telemetry.domain_percentile.labels(name).observe(prediction.domain_percentile)
            for reason in judgement.reasons:
                self.telemetry.verdicts.labels(name, judgement.verdict, reason).inc()
        return judgement

    def result(self, key: str) -> Answer:
        """Return a stored result with its latest verdict; blocking.

        Raises
        ------
        Refusal
            ``not_found`` if there is none of that id.
        """
        stored = self.store.find(key)
        latest = self.store.verdict(key)
        if stored is None or latest is None:
            raise Refusal("not_found", "There is no result of that id.")
        return answer(stored, ModelCard.model_validate(stored.model["card"]), latest[0], latest[1], None)


def _uid(image: Image) -> str | None:
    """Return the SOP Instance UID, or None where the image states none that could be one (64 characters at most)."""
    uid = str(image.header.get("SOPInstanceUID", "")).strip() if image.header is not None else ""
    return uid if 0 < len(uid) <= 64 else None


def _heatmap(prediction: Prediction, card: ModelCard, image: Image) -> Heatmap:
    assert prediction.heatmap is not None
    label = card.output.findings[0].label
    png, peak = heatmap_png(prediction.heatmap, card, label, image.rows, image.columns)
    return Heatmap(label=label, media_type="image/png", peak=peak, data=base64.b64encode(png).decode())


def answer(stored: Stored, card: ModelCard, uid: str | None, judgement: Judgement, heatmap: Heatmap | None) -> Answer:
    """Put a stored result, the card of its model, one instance of it and a verdict together."""
    row, model = stored.result, stored.model
    called = positives(stored.prediction, card, judgement.verdict)
    return Answer(
        result_id=row["id"],
        image_sha256=row["image_sha256"],
        sop_instance_uid=uid,
        model=ModelBlock(
            name=model["name"],
            version=model["version"],
            sha256=model["sha256"],
            provider=row["provider"],
            intended_use=card.intended_use.model_dump(),
        ),
        task=card.task,
        findings=[
            FindingAnswer(
                label=item.label,
                probability=row["probabilities"][item.label],
                operating_point=item.operating_point,
                positive=called[item.label],
            )
            for item in card.output.findings
        ],
        predicted_loss=row["predicted_loss"],
        loss_percentile=row["loss_percentile"],
        domain_distance=row["domain_distance"],
        domain_percentile=row["domain_percentile"],
        entropy=row["entropy"],
        verdict=judgement.verdict,
        reasons=[Reason(code=code, message=REASONS[code]) for code in judgement.reasons],
        heatmap=heatmap,
    )
