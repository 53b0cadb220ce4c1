"""The candidate in shadow: it predicts what the current package predicted, once that is answered, and only while nobody waits.

One thread takes an image at a time, and begins none while the engine has no thread to spare. What does not fit into its queue is
dropped and counted: answers never wait for a candidate.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

from models.errors import Refusal
from models.image import Box
from models.imaging import read_image
from models.objects import Segmentation
from models.postprocess import Prediction
from models.predictor import Predictor
from models.preprocess import check_accepted
from models.triage import Judgement, judge, positives
from service.comparisons import Comparisons, Pair
from service.engine import Engine
from service.lineup import Lineup, Served
from service.schemas import STATUS
from service.segmentation import record_of, restore
from service.store import Store, Stored, result_id, result_row
from service.telemetry import Telemetry, log_fault

MAX_JOBS, MAX_BYTES = 256, 128 * 1024 * 1024
"""What may wait for the candidate, in images and in bytes of what was sent."""
SAME_OBJECTS_DICE = 0.9
"""Two segmentations have the same findings from this overlap of their objects on."""
_PAUSE_SECONDS = 0.05


@dataclass(frozen=True, eq=False)
class Job:
    """An image that was answered.

    Attributes
    ----------
    body : bytes
        What was sent: the candidate may need more of it than the current package did, so it is decoded again.
    region : Box or None
    served : Served
        The package that answered.
    stored : Stored
        Its result.
    judgement : Judgement
        Its verdict.
    """

    body: bytes
    region: Box | None
    served: Served
    stored: Stored
    judgement: Judgement


class Shadow:
    """Runs the candidates of one worker.

    Parameters
    ----------
    lineup : Lineup
    engine : Engine
    store : Store
    telemetry : Telemetry
    """

    def __init__(self, lineup: Lineup, engine: Engine, store: Store, telemetry: Telemetry) -> None:
        self._lineup, self._engine, self._store, self._telemetry = lineup, engine, store, telemetry
        self._comparisons = Comparisons(store)
        self._jobs: deque[Job] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="overread-shadow", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Finish the image at hand and leave the rest."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def offer(self, job: Job) -> None:
        """Take an image for later, where its model has a candidate; never waits."""
        name = job.served.predictor.card.name
        if name not in self._lineup.candidates:
            return
        with self._changed:
            if len(self._jobs) >= MAX_JOBS or self._bytes + len(job.body) > MAX_BYTES:
                self._telemetry.candidate_missed.labels(name, "queue_full").inc()
                return
            self._jobs.append(job)
            self._bytes += len(job.body)
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._closing and (not self._jobs or not self._engine.idle):
                    # A free thread is not announced, and nothing is lost by seeing it a moment later
                    self._changed.wait(_PAUSE_SECONDS if self._jobs else None)
                if self._closing:
                    return
                job = self._jobs.popleft()
                self._bytes -= len(job.body)
            self._attempt(job)

    def _attempt(self, job: Job) -> None:
        name = job.served.predictor.card.name
        candidate = self._lineup.candidates.get(name)
        if candidate is None:  # withdrawn, or promoted, meanwhile
            return
        try:
            self._compare(name, candidate, job)
        except Refusal as refusal:
            refused = STATUS.get(refusal.code, 500) < 500  # the image is outside of the candidate's card
            self._telemetry.candidate_missed.labels(name, "refused" if refused else "failed").inc()
        # Whatever a candidate does must not end the thread that tries it
        except Exception as error:  # noqa: BLE001
            log_fault(error)
            self._telemetry.candidate_missed.labels(name, "failed").inc()

    def _compare(self, name: str, candidate: Served, job: Job) -> None:
        key = result_id(job.stored.result["image_sha256"], candidate.predictor.sha256, job.region)
        if self._comparisons.known(job.stored.result["id"], key):
            return
        stored = self._store.find(key)
        if stored is None:
            stored = Stored(predict_row(candidate, job.body, job.region), candidate.row)
        # That a UID came twice is no finding of the current package, but holds for the image
        notes = [*stored.result["notes"], *(code for code in job.judgement.reasons if code == "uid_reused")]
        judgement = judge(stored.prediction, candidate.limits, notes)
        same = same_findings((job.served, job.stored, job.judgement), (candidate, stored, judgement))
        pair = Pair(job.judgement.verdict, judgement.verdict, same)
        if self._comparisons.add(name, job.stored.result["id"], stored.result, pair):
            self._telemetry.candidate_verdicts.labels(name, pair.verdict, pair.candidate_verdict).inc()
            self._telemetry.candidate_findings.labels(name, "yes" if same else "no").inc()


def predict_row(served: Served, body: bytes, region: Box | None) -> dict[str, Any]:
    """Predict for an image exactly as it would be if this package were current; return the row of ``results``.

    Raises
    ------
    Refusal
        As :meth:`service.analysis.Site.analyse`.
    """
    predictor = served.predictor
    spec = predictor.card.input
    target = (spec.height, spec.width) if isinstance(predictor, Predictor) else None
    image = read_image(body, target=target, region=region)
    notes = [code for code, _ in check_accepted(image, spec)]
    prediction: Prediction | Segmentation
    if isinstance(predictor, Predictor):
        (prediction,) = predictor.predict([image])
        return result_row(image, prediction, predictor, notes)
    prediction, _ = predictor.predict(image, region)
    return result_row(image, prediction, predictor, notes, record_of(prediction, image, region))


Said = tuple[Served, Stored, Judgement]


def same_findings(first: Said, second: Said) -> bool:
    """Tell whether two packages say the same of an image.

    Of classifiers: every finding is called alike. Of segmenters: their called objects overlap with a Dice of 0.9 at least.
    """
    (_, ours, _), (_, theirs, _) = first, second
    if ours.result["segmentation"] is None or theirs.result["segmentation"] is None:
        return _called(first) == _called(second)
    masks = []
    for _, stored, judgement in (first, second):
        segmentation = restore(stored.result)
        masks.append(segmentation.label_image > 0 if judgement.verdict != "refuse" else segmentation.label_image < 0)
    total = int(masks[0].sum()) + int(masks[1].sum())
    return total == 0 or 2 * int((masks[0] & masks[1]).sum()) >= SAME_OBJECTS_DICE * total


def _called(said: Said) -> dict[str, bool]:
    served, stored, judgement = said
    assert isinstance(served.predictor, Predictor)
    return positives(stored.prediction, served.predictor.card, judgement.verdict)
