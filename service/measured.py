"""The metrics that are counted in the store, where they are asked for: of the archive's instances, and of each site's scans."""

from __future__ import annotations

from service.analysis import Site
from service.arrivals import Arrivals


def measure_archive(site: Site) -> None:
    """Set the metrics of the watch, which is another process."""
    arrivals = Arrivals(site.store)
    for state, number in arrivals.counts().items():
        site.telemetry.pacs_instances.labels(state).set(number)
    site.telemetry.pacs_waiting.set(arrivals.longest_wait())
    position = arrivals.last_look()
    if position is not None:
        site.telemetry.pacs_look.set(position.timestamp())


def measure_sites(site: Site) -> None:
    """Show the health of every configured site and station, of the packages that answer."""
    packages = [served.predictor.sha256 for served in site.lineup.current.values()]
    rows = [row for row in site.health.rows(packages) if site.origins.shows(row.site, row.station)]
    site.telemetry.sites.show(rows, site.health.confirmed(packages))
