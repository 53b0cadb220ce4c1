"""Metrics and logs: the only place that knows prometheus_client, and the only writer of log lines about requests.

Labels come from closed sets only (routes, codes, loaded models, verdict reasons); a log line holds no identifier, path or
query. With several workers prometheus_client writes to files that all workers share, and a scrape of any worker adds
them up; it decides that when it is first imported, so the import waits until a worker has started.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import prometheus_client
    from prometheus_client.metrics_core import Metric

    from models.batch import AnyPredictor
    from service.health import Confirmed, SiteHealth

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # more of them, and a site would pass 300 series
TIMED = frozenset({"/v1/predict", "/v1/dicomweb/studies", "/v1/results/{result_id}"})
"""Routes whose duration is measured: those that wait for an image or for the store; of the others it would say nothing."""
CODED = frozenset({"/v1/predict", "/v1/dicomweb/studies", "none"})
"""Routes of images, and paths that are no route: their answers are counted by status and code, the others' by less."""

MISSED = ("full", "disk", "too_large", "failed")
"""Why a scan that should have become an item did not."""
RESCORED = ("ok", "withdrawn", "failed")
"""What became of an item that was scored again."""
LABEL_SOURCES = ("page", "api", "label-studio")
"""Where labels come from over HTTP."""
SITE_PERCENTILES = (25.0, 50.0, 75.0, 95.0)
"""Upper bounds of the buckets of a site's percentiles, which the store counts: few, for there may be many sites."""
UNKNOWN = {"low": 0.0, "high": 1.0}
"""Bounds of a share of which no label says anything."""

METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "overread_requests_total": ("Requests answered.", ("route", "status", "code")),
    "overread_request_duration_seconds": (
        "From the first byte of a request to its answer, of routes that wait for an image or the store.",
        ("route",),
    ),
    "overread_stow_instances_total": ("Instances that came by STOW-RS.", ("outcome",)),
    "overread_pacs_instances": ("Instances that the watch of the archive saw, by what became of them.", ("state",)),
    "overread_items": ("Items of the worklist.", ("state",)),
    "overread_items_missed_total": ("Scans that should have become items and did not.", ("reason",)),
    "overread_items_rescored_total": ("Items that were scored again after a promotion.", ("outcome",)),
    "overread_labels_total": ("Labels given over HTTP, those given again included.", ("source",)),
    "overread_kept_bytes": ("Size of all kept pixels.", ()),
    "overread_leases": ("Items that readers hold.", ()),
    "overread_queue_depth": ("Images waiting for a thread, over all workers.", ()),
    "overread_decode_seconds": ("Reading and preprocessing an image.", ("media_type",)),
    "overread_inference_seconds": ("Running the model on one image.", ("model",)),
    "overread_store_seconds": ("Committing a result.", ()),
    "overread_model_info": ("1 for each package that answers, 0 for one that did.", ("model", "version", "sha256", "provider")),
    "overread_package_failures_total": ("Promoted packages that could not be loaded; the one before goes on.", ("model",)),
    "overread_candidate_verdicts_total": (
        "Images that a candidate predicted too, by the verdict that was given and its own.",
        ("model", "verdict", "candidate_verdict"),
    ),
    "overread_candidate_findings_total": ("The same images, by whether it found the same.", ("model", "same")),
    "overread_candidate_missed_total": ("Images that a candidate did not predict, and why.", ("model", "reason")),
    "overread_verdicts_total": ("Verdicts on new results, once for each reason.", ("model", "verdict", "reason")),
    "overread_repeated_results_total": ("Answers given from the store.", ("model",)),
    "overread_pacs_oldest_waiting_seconds": ("How long the instance has waited that waits longest.", ()),
    "overread_pacs_last_look_timestamp_seconds": ("When the archive last answered the watch.", ()),
    "overread_site_loss_percentile": ("Percentile of predicted loss of each scan of a site.", ("site", "model")),
    "overread_site_domain_percentile": ("Percentile of domain distance of each scan of a site.", ("site", "model")),
    "overread_site_scans_total": ("Scans of a site by their verdict.", ("site", "model", "verdict")),
    "overread_drift_statistic": ("Evidence that a site's scans have changed; an alarm from 1,000,000 on.", ("site", "model")),
    "overread_drift_scans": ("Scans that the drift test has seen since it began.", ("site", "model")),
    "overread_drift_alarm": ("1 from an alarm of the drift test until it begins anew, else 0.", ("site", "model")),
    "overread_station_scans_total": ("Scans of a station by their verdict.", ("site", "station", "model", "verdict")),
    "overread_station_percentile_points_total": (
        "Sum of a station's percentiles of predicted loss and of domain distance: divided by its scans, their mean.",
        ("site", "station", "model", "score"),
    ),
    "overread_station_beyond_total": (
        "Scans of a station beyond the 95th percentile of the calibration set: 5 of 100 on images like those.",
        ("site", "station", "model", "score"),
    ),
    "overread_station_drift_alarm": ("As overread_drift_alarm, of a station's scans alone.", ("site", "station", "model")),
    "overread_accepted_labels": ("Accepted scans, drawn at random, that have a label.", ("site", "model")),
    "overread_accepted_error_ratio": (
        "Share of them that the label contradicts, and its 95% interval.",
        ("site", "model", "bound"),
    ),
}
"""Metric -> (help, labels). ``docs/metrics.md`` lists them."""


def counted(route: str, status: int, code: str) -> tuple[str, str, str]:
    """Return the labels under which an answer is counted.

    Of the routes that people use, neighbours (such as all below ``/v1/worklist``) and codes are taken together: each with each
    would be more series than a site wants. The log has them.
    """
    if route in CODED:
        return route, str(status), code
    hundred = status // 100
    neighbours = "/".join(part for part in route.split("/")[:3] if not part.startswith("{"))
    return neighbours, f"{hundred}xx", {4: "refused", 5: "failed"}.get(hundred, "ok")


class Telemetry:
    """The metrics of one worker.

    Attributes are the metrics without their prefix and unit suffix; see :data:`METRICS`.
    """

    def __init__(self) -> None:
        import prometheus_client as client  # see the module's docstring

        self._client = client
        self._shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self._registry = client.CollectorRegistry()
        self.requests = self._counter("overread_requests_total")
        self.request_duration = self._histogram("overread_request_duration_seconds", SECONDS)
        self.stow_instances = self._counter("overread_stow_instances_total")
        self.pacs_instances = self._gauge("overread_pacs_instances", "livemostrecent")
        self.items = self._gauge("overread_items", "livemostrecent")
        self.items_missed = self._counter("overread_items_missed_total")
        self.items_rescored = self._counter("overread_items_rescored_total")
        self.labels = self._counter("overread_labels_total")
        for counter, values in (  # so that there is a 0 to compare the first one with
            (self.labels, LABEL_SOURCES),
            (self.items_missed, MISSED),
            (self.items_rescored, RESCORED),
        ):
            for value in values:
                counter.labels(value)
        self.kept_bytes = self._gauge("overread_kept_bytes", "livemostrecent")
        self.leases = self._gauge("overread_leases", "livemostrecent")
        self.queue_depth = self._gauge("overread_queue_depth", "livesum")
        self.decode = self._histogram("overread_decode_seconds", SECONDS)
        self.inference = self._histogram("overread_inference_seconds", SECONDS)
        self.store = self._histogram("overread_store_seconds", SECONDS)
        self.model_info = self._gauge("overread_model_info", "livemax")
        self.package_failures = self._counter("overread_package_failures_total")
        self.candidate_verdicts = self._counter("overread_candidate_verdicts_total")
        self.candidate_findings = self._counter("overread_candidate_findings_total")
        self.candidate_missed = self._counter("overread_candidate_missed_total")
        self.verdicts = self._counter("overread_verdicts_total")
        self.repeated = self._counter("overread_repeated_results_total")
        self.pacs_waiting = self._gauge("overread_pacs_oldest_waiting_seconds", "livemostrecent")
        self.pacs_look = self._gauge("overread_pacs_last_look_timestamp_seconds", "livemostrecent")
        self.sites = Sites(client.metrics_core)
        self._registry.register(self.sites)

    def _counter(self, name: str) -> prometheus_client.Counter:
        return self._client.Counter(name, *METRICS[name], registry=self._registry)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> prometheus_client.Histogram:
        return self._client.Histogram(name, *METRICS[name], registry=self._registry, buckets=buckets)

    def _gauge(self, name: str, mode: Literal["livesum", "livemax", "livemostrecent"]) -> prometheus_client.Gauge:
        return self._client.Gauge(name, *METRICS[name], registry=self._registry, multiprocess_mode=mode)

    def loaded(self, predictor: AnyPredictor) -> None:
        """Show a package that answers."""
        self._inform(predictor, 1)
        self.package_failures.labels(predictor.card.name)  # so that there is a 0 to compare the first failure with

    def tried(self, name: str) -> None:
        """Begin the counts of a candidate at 0."""
        for same in ("yes", "no"):
            self.candidate_findings.labels(name, same)
        for reason in ("queue_full", "refused", "failed"):
            self.candidate_missed.labels(name, reason)

    def unloaded(self, predictor: AnyPredictor) -> None:
        """Show that a package answers no longer."""
        self._inform(predictor, 0)

    def _inform(self, predictor: AnyPredictor, value: int) -> None:
        card = predictor.card
        self.model_info.labels(card.name, card.version, predictor.sha256, predictor.provider).set(value)

    def exposition(self) -> tuple[bytes, str]:
        """Return the metrics of all workers in Prometheus' text format, and its content type."""
        registry = self._registry
        if self._shared:
            from prometheus_client import multiprocess

            # A worker that was killed leaves its gauges behind; only the living count.
            for file in Path(self._shared).glob("gauge_live*_*.db"):
                pid = file.stem.rsplit("_", 1)[1]
                if not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
                    multiprocess.mark_process_dead(int(pid), self._shared)  # type: ignore[no-untyped-call]
            registry = self._client.CollectorRegistry()
            multiprocess.MultiProcessCollector(registry, self._shared)  # type: ignore[no-untyped-call]
            registry.register(self.sites)  # from the store, so the same in every worker
        return self._client.generate_latest(registry), self._client.CONTENT_TYPE_LATEST


class Sites:
    """What was last shown of every site; a collector of prometheus_client's.

    Parameters
    ----------
    families : module
        ``prometheus_client.metrics_core``.
    """

    def __init__(self, families: Any) -> None:
        self._families = families
        self._rows: list[SiteHealth] = []
        self._confirmed: dict[tuple[str, str], Confirmed] = {}

    def show(self, rows: list[SiteHealth], confirmed: dict[tuple[str, str], Confirmed]) -> None:
        """Take rows of sites and of stations, and what labels say of sites and packages."""
        self._rows, self._confirmed = rows, confirmed

    def collect(self) -> list[Metric]:
        """Return the families."""
        found = {name: self._family(name) for name, (_, labels) in METRICS.items() if "site" in labels}
        for row in self._rows:
            if row.station:
                self._add_station(found, row)
                continue
            key = [row.site, row.model]
            for name, counts, total in (("loss", row.loss, row.loss_sum), ("domain", row.domain, row.domain_sum)):
                buckets = list(zip([*map(str, SITE_PERCENTILES), "+Inf"], counts, strict=True))
                found[f"overread_site_{name}_percentile"].add_metric(key, buckets=buckets, sum_value=total)
            for verdict, number in row.verdicts.items():
                found["overread_site_scans_total"].add_metric([*key, verdict], number)
            found["overread_drift_statistic"].add_metric(key, row.drift.statistic)
            found["overread_drift_scans"].add_metric(key, row.drift.seen)
            found["overread_drift_alarm"].add_metric(key, int(row.drift.alarm_at is not None))
            given = self._confirmed.get((row.site, row.model_sha256))
            found["overread_accepted_labels"].add_metric(key, given.labelled if given else 0)
            bounds = {"low": given.low, "estimate": given.wrong / given.labelled, "high": given.high} if given else UNKNOWN
            for bound, value in bounds.items():
                found["overread_accepted_error_ratio"].add_metric([*key, bound], value)
        return list(found.values())

    @staticmethod
    def _add_station(found: dict[str, Any], row: SiteHealth) -> None:
        """Add a station: less than a site has, for there are more of them, and each name is a series (:mod:`service.origins`)."""
        key = [row.site, row.station, row.model]
        for verdict, number in row.verdicts.items():
            found["overread_station_scans_total"].add_metric([*key, verdict], number)
        for score, counts, total in (("loss", row.loss, row.loss_sum), ("domain", row.domain, row.domain_sum)):
            found["overread_station_percentile_points_total"].add_metric([*key, score], total)
            found["overread_station_beyond_total"].add_metric([*key, score], counts[-1] - counts[-2])
        found["overread_station_drift_alarm"].add_metric(key, int(row.drift.alarm_at is not None))

    def _family(self, name: str) -> Any:
        text, names = METRICS[name]
        if name.endswith("_total"):
            return self._families.CounterMetricFamily(name, text, labels=names)
        kind = "HistogramMetricFamily" if name.endswith("_percentile") else "GaugeMetricFamily"
        return getattr(self._families, kind)(name, text, labels=names)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(record.created)), "level": record.levelname}
        # Only fields that our own calls name are written: a message built from input could carry an identifier.
        line |= {"event": record.msg} | getattr(record, "fields", {})
        return json.dumps(line)


def logger() -> logging.Logger:
    """Return the service's logger: JSON lines on stderr. ``logger().info("event", extra={"fields": {...}})``."""
    log = logging.getLogger("overread")
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_JsonLines())
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    return log


def log_fault(error: Exception) -> None:
    """Log where a fault arose, without its message: that could hold what the caller or the archive sent."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-6:]]
    logger().error("fault", extra={"fields": {"type": type(error).__name__, "where": where}})
