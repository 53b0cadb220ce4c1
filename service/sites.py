"""What each site saw, day by day and package by package: doubts, verdicts, and how often a label confirmed the model."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from service.items import RANDOM
from service.loop_schemas import SiteDay
from service.store import Store
from service.tables import items, labels, models, results, verdicts

_DAY = sa.func.date(verdicts.c.created_at)
_KEY = (verdicts.c.site, _DAY.label("day"), results.c.model_sha256)


def _share(wanted: str) -> sa.ColumnElement[int]:
    return sa.func.sum(sa.case((verdicts.c.verdict == wanted, 1), else_=0))


def site_days(store: Store, model_name: str, days: int) -> list[SiteDay]:
    """Return a row for each site, day (UTC) and package of a model, the newest day first; today is the first of ``days``."""
    since = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days - 1)
    recent = (models.c.name == model_name, verdicts.c.created_at >= since)
    scans = (
        sa.select(*_KEY, models.c.version, sa.func.count().label("n"))
        .add_columns(sa.func.avg(results.c.predicted_loss).label("loss"), sa.func.avg(results.c.domain_percentile).label("far"))
        .add_columns(*(_share(name).label(name) for name in ("accept", "review", "refuse")))
        .join_from(verdicts, results, results.c.id == verdicts.c.result_id)
        .join(models, models.c.sha256 == results.c.model_sha256)
        .where(*recent, ~verdicts.c.scored_again)
        .group_by(*_KEY, models.c.version)
        .order_by(sa.desc("day"), verdicts.c.site, models.c.version)
    )
    # A label counts on the day of the scan; one that was replaced does not count
    later = labels.alias()
    first = sa.select(sa.func.min(verdicts.c.id).label("id")).group_by(verdicts.c.result_id).subquery()
    right, drawn = labels.c.model_was_right, items.c.origin == RANDOM
    confirmed = (
        sa.select(*_KEY, sa.func.count(labels.c.image_sha256.distinct()).label("labelled"))
        .add_columns(sa.func.avg(sa.case((right, 1.0), else_=0.0)).label("agreement"))
        .add_columns(sa.func.count(sa.case((drawn, labels.c.image_sha256)).distinct()).label("random_labelled"))
        .add_columns(sa.func.sum(sa.case((drawn & right, 1), else_=0)).label("random_right"))
        .add_columns(sa.func.sum(sa.case((drawn, 1), else_=0)).label("random_n"))
        .join_from(labels, results, results.c.id == labels.c.result_id)
        .join(models, models.c.sha256 == results.c.model_sha256)
        .join(verdicts, verdicts.c.result_id == results.c.id)
        .join(first, first.c.id == verdicts.c.id)
        .outerjoin(items, items.c.id == labels.c.item_id)
        .where(*recent, ~sa.exists().where(later.c.replaces == labels.c.label_id))
        .group_by(*_KEY)
    )
    with store.reading() as connection:
        labelled = {(row.site, row.day, row.model_sha256): row for row in connection.execute(confirmed)}
        return [_day(row, labelled.get((row.site, row.day, row.model_sha256))) for row in connection.execute(scans)]


def _day(row: Any, given: Any) -> SiteDay:
    return SiteDay(
        site=row.site,
        day=row.day,
        model_version=row.version,
        model_sha256=row.model_sha256,
        n=row.n,
        mean_predicted_loss=row.loss,
        mean_domain_percentile=row.far,
        accept=row.accept,
        review=row.review,
        refuse=row.refuse,
        labelled=given.labelled if given else 0,
        agreement=given.agreement if given else None,
        random_labelled=given.random_labelled if given else 0,
        random_agreement=given.random_right / given.random_n if given and given.random_n else None,
    )
