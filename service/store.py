"""Results and verdicts on disk: the only SQL. A result is committed before it is answered."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from models.batch import AnyPredictor
from models.errors import Refusal
from models.image import Box, Image
from models.objects import Segmentation
from models.postprocess import Prediction
from models.triage import Judgement
from service.database import coded, database_at
from service.dialects import Insert, Look, Upsert
from service.origins import NOWHERE, Origin
from service.pseudonyms import Whose
from service.schemas import SegmentationRecord
from service.segmentation import pack
from service.server import Server
from service.tables import instances, models, results, site_keys, verdicts


def _or_last_stated(made: Insert) -> Insert:
    return made.on_conflict_do_update(
        index_elements=["sop_instance_uid", "image_sha256"],
        set_={name: made.excluded[name] for name in ("patient", "patient_number")},
        where=instances.c.patient.is_distinct_from(made.excluded.patient),
    )


# Statements are built once: building them costs more than running them.
_ADD_MODEL, _ADD_RESULT, _ADD_INSTANCE, _ADD_VERDICT = (
    Upsert(table, lambda made: made.on_conflict_do_nothing()) for table in (models, results, instances, verdicts)
)
_ADD_KEY = Upsert(site_keys, lambda made: made.on_conflict_do_nothing())
_KEY = sa.select(site_keys.c.fingerprint).where(site_keys.c.purpose == "pseudonyms")
_ADD_INSTANCE_OF = Upsert(instances, _or_last_stated)
_NOTHING = sa.select(1)
_THERE = Look(sa.select(results.c.id).where(results.c.id == sa.bindparam("key")))
_RESULT = sa.select(results).where(results.c.id == sa.bindparam("key"))
_MODEL = sa.select(models).where(models.c.sha256 == sa.bindparam("sha256"))
_FIRST_IMAGE = Look(
    sa.select(instances.c.image_sha256)
    .where(instances.c.sop_instance_uid == sa.bindparam("uid"))
    .order_by(instances.c.id)
    .limit(1)
)


@dataclass(frozen=True)
class Stored:
    """A stored result: its row of ``results`` and the model's row."""

    result: dict[str, Any]
    model: dict[str, Any]

    @property
    def prediction(self) -> Prediction:
        """The prediction as it was stored; heatmaps are not. A segmenter's has no probabilities."""
        row = self.result
        return Prediction(
            probabilities=row["probabilities"],
            predicted_loss=row["predicted_loss"],
            loss_percentile=row["loss_percentile"],
            loss_score=row["loss_score"],
            domain_distance=row["domain_distance"],
            domain_percentile=row["domain_percentile"],
            entropy=row["entropy"],
            features=np.frombuffer(row["features"], dtype="<f4"),
            heatmap=None,
        )


def result_id(image_sha256: str, model_sha256: str, region: Box | None = None) -> str:
    """Return the key of a result: the same image, model package and region give the same one."""
    part = "" if region is None else ":" + ",".join(map(str, region))
    return hashlib.sha256(f"{image_sha256}:{model_sha256}{part}".encode()).hexdigest()


def result_row(
    image: Image,
    prediction: Prediction | Segmentation,
    predictor: AnyPredictor,
    notes: list[str],
    record: SegmentationRecord | None = None,
) -> dict[str, Any]:
    """Return the row of ``results`` for a new prediction; ``record`` is what else is stored of a segmentation."""
    return {
        "id": result_id(image.sha256, predictor.sha256, record.region if record else None),
        "image_sha256": image.sha256,
        "model_sha256": predictor.sha256,
        "provider": predictor.provider,
        "media_type": image.media_type,
        "rows": image.rows,
        "columns": image.columns,
        "probabilities": prediction.probabilities if isinstance(prediction, Prediction) else {},
        "loss_score": prediction.loss_score,
        "predicted_loss": prediction.predicted_loss,
        "loss_percentile": prediction.loss_percentile,
        "domain_distance": prediction.domain_distance,
        "domain_percentile": prediction.domain_percentile,
        "entropy": prediction.entropy,
        "features": np.ascontiguousarray(prediction.features, dtype="<f4").tobytes(),
        "notes": notes,
        "segmentation": pack(record) if record else None,
    }


def model_row(predictor: AnyPredictor) -> dict[str, Any]:
    """Return the row of ``models`` for a loaded model."""
    card = predictor.card
    return {"sha256": predictor.sha256, "name": card.name, "version": card.version, "card": card.model_dump(mode="json")}


class Store:
    """The database of one site. Thread-safe; what was written is on disk when it returns (:mod:`service.database`).

    Parameters
    ----------
    where : Path or Server
        SQLite's file, which is created when missing, or a PostgreSQL database; migrated to the newest schema.

    Raises
    ------
    Refusal
        ``storage_full`` or ``storage_unavailable``; ``config_invalid`` as :func:`service.database.database_at` says.
    """

    def __init__(self, where: Path | Server) -> None:
        self._database = database_at(where)
        self._reader, self._writer = self._database.reader, self._database.writer
        # One writer at a time is the rule; waiting here is fair and quick, and holds no connection.
        self._turn = threading.Lock()
        with coded():
            self._database.migrate()

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._reader.dialect.name

    def close(self) -> None:
        """Close every connection."""
        self._reader.dispose()
        self._writer.dispose()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Read in a transaction; a database's failure is a :class:`Refusal`."""
        with coded(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Write in a transaction, one at a time; a database's failure is a :class:`Refusal`."""
        with coded(), self._turn, self._writer.begin() as connection:
            yield connection

    def _look(self, look: Look, **values: str) -> str | None:
        """Look for one text; a database's failure is a :class:`Refusal`."""
        with coded():
            return look.first(self._reader, **values)

    def claimed(self, name: str) -> AbstractContextManager[bool]:
        """Tell, in a block, whether this process is the only one with the database that has claimed that name."""
        return self._database.claimed(name)

    def check(self) -> None:
        """Ask the database for nothing; a failure is a :class:`Refusal`."""
        with self.reading() as connection:
            connection.execute(_NOTHING)

    def check_key(self, fingerprint: str) -> None:
        """Check that the pseudonyms of this database were made with that secret; the first one to ask decides.

        Raises
        ------
        Refusal
            ``config_invalid`` if they were made with another one.
        """
        with self.reading() as connection:
            known = connection.execute(_KEY).scalar()
        if known is None:
            with self.writing() as connection:
                _ADD_KEY.run(connection, {"purpose": "pseudonyms", "fingerprint": fingerprint})
                known = connection.execute(_KEY).scalar_one()
        if known != fingerprint:
            self.close()  # nobody goes on with it
            raise Refusal(
                "config_invalid",
                "The secret for pseudonyms (pseudonym.key in the state folder) is not the one that this database was begun with.",
            )

    def rewrite(self) -> bool:
        """Write the database anew, so that nothing removed is left in its files; return whether that was done."""
        with coded():
            return self._database.rewrite()

    def register(self, predictor: AnyPredictor) -> None:
        """Keep a loaded model's card, so that its results can be answered when it is no longer loaded."""
        with self.writing() as connection:
            _ADD_MODEL.run(connection, model_row(predictor) | {"first_loaded_at": datetime.now(UTC)})

    def find(self, key: str) -> Stored | None:
        """Return the result of that id, or None."""
        if self._look(_THERE, key=key) is None:
            return None
        with self.reading() as connection:
            row = connection.execute(_RESULT, {"key": key}).mappings().first()
            if row is None:
                return None  # erased meanwhile
            model = connection.execute(_MODEL, {"sha256": row["model_sha256"]}).mappings().one()
            return Stored(dict(row), dict(model))

    def verdict(self, key: str, uid: str | None = None, triage_sha256: str | None = None) -> tuple[str | None, Judgement] | None:
        """Return the instance and the verdict of a result: that of one instance and limits, or the latest."""
        query = sa.select(verdicts).where(verdicts.c.result_id == key).order_by(verdicts.c.id.desc()).limit(1)
        if triage_sha256 is not None:
            query = query.where(verdicts.c.triage_sha256 == triage_sha256, verdicts.c.sop_instance_uid == (uid or ""))
        with self.reading() as connection:
            row = connection.execute(query).mappings().first()
        return (row["sop_instance_uid"] or None, Judgement(row["verdict"], tuple(row["reasons"]))) if row else None

    def decided_at(self, key: str, uid: str | None, triage_sha256: str) -> datetime:
        """Return when the verdict of a result, for one instance and limits, was committed; it has to be there."""
        query = sa.select(verdicts.c.created_at).filter_by(result_id=key, sop_instance_uid=uid or "", triage_sha256=triage_sha256)
        with self.reading() as connection:
            at: datetime = connection.execute(query).scalar_one()
        return at.replace(tzinfo=UTC)

    def record(
        self,
        row: dict[str, Any],
        uid: str | None,
        triage_sha256: str,
        judge: Callable[[bool], Judgement],
        origin: Origin = NOWHERE,
        then: Callable[[sa.Connection, Judgement], None] | None = None,
        scored_again: bool = False,
        whose: Whose | None = None,
    ) -> tuple[bool, Judgement]:
        """Commit a result, the instance it came from, and its verdict, in one transaction; what is there already stays.

        Parameters
        ----------
        row : dict
            As :func:`result_row` or :class:`Stored` gives it.
        uid : str or None
            SOP Instance UID.
        triage_sha256 : str
            Digest of the limits in force.
        judge : callable
            Called with whether the UID was seen before with another image.
        origin : Origin
            Where the image came from.
        then : callable, optional
            Called in the transaction with the stored verdict; what it raises undoes everything.
        scored_again : bool
            Whether this is for an item of the worklist rather than for a scan.
        whose : Whose or None
            Pseudonyms of the patient; None where the image states none.

        Returns
        -------
        new : bool
            Whether the result was not there before.
        judgement : Judgement
            The stored verdict.
        """
        now = datetime.now(UTC)
        with self.writing() as connection:
            made = _ADD_RESULT.run(connection, {"created_at": now} | row)
            judgement = judge(uid is not None and self._see(connection, uid, row["image_sha256"], now, whose))
            key = {"result_id": row["id"], "sop_instance_uid": uid or "", "triage_sha256": triage_sha256}
            values = key | {"verdict": judgement.verdict, "reasons": list(judgement.reasons), "created_at": now}
            values |= origin._asdict() | {"scored_again": scored_again}
            if _ADD_VERDICT.run(connection, values) == 0:
                same = [verdicts.c[name] == value for name, value in key.items()]
                stored = connection.execute(sa.select(verdicts.c.verdict, verdicts.c.reasons).where(*same)).one()
                judgement = Judgement(stored.verdict, tuple(stored.reasons))
            if then is not None:
                then(connection, judgement)
        return made == 1, judgement

    def reused(self, uid: str | None, image_sha256: str) -> bool:
        """Tell whether a SOP Instance UID came with another image before."""
        if uid is None:
            return False
        return self._look(_FIRST_IMAGE, uid=uid) not in {None, image_sha256}

    def restated(self, uid: str | None, image_sha256: str, whose: Whose) -> bool:
        """Tell whether an instance is noted with another patient, or none, than it states now."""
        noted = sa.select(instances.c.patient).filter_by(sop_instance_uid=uid, image_sha256=image_sha256)
        with self.reading() as connection:
            return connection.execute(noted).scalars().all() not in ([], [whose.patient])

    @staticmethod
    def _see(connection: sa.Connection, uid: str, image_sha256: str, now: datetime, whose: Whose | None) -> bool:
        """Note an instance and its patient as last stated, and tell whether its UID came with another image before."""
        seen = {"sop_instance_uid": uid, "image_sha256": image_sha256, "first_seen_at": now}
        if whose is None:
            _ADD_INSTANCE.run(connection, seen)
        else:
            _ADD_INSTANCE_OF.run(connection, seen | {"patient": whose.patient, "patient_number": whose.number})
        return _FIRST_IMAGE.first_within(connection, uid=uid) != image_sha256
