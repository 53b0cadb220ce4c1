"""Where a scan comes from: a configured site and, at it, a configured station. No other name of either is stored or counted."""

from __future__ import annotations

from typing import NamedTuple

from models.errors import Refusal
from models.image import Image
from service.settings import Settings

STATIONS_A_SITE, MORE_STATIONS = 2, 1
"""How many stations there may be: so many for each configured site, and so many more. Each brings 8 series a model, so that a
site with its stations has 40, and everything else 300 (row 18 of docs/reliability.md)."""
LONGEST = 16
"""Characters of a StationName (0008,1010), whose VR is SH (PS3.5, 6.2)."""


class Origin(NamedTuple):
    """A configured site and one of its configured stations; each empty where there is none."""

    site: str = ""
    station: str = ""


NOWHERE = Origin()


class Origins:
    """The configured sites and stations.

    Parameters
    ----------
    settings : Settings

    Raises
    ------
    Refusal
        ``config_invalid`` for a station of a site that is not configured, one that no scan could state, the same one twice, or
        more of them than the bound on series allows.
    """

    def __init__(self, settings: Settings) -> None:
        self.sites = {"", *settings.sites}
        # A name without "=" is a station of scans without a site
        split = [text.partition("=") if "=" in text else ("", "", text) for text in settings.stations]
        self.stations = {Origin(site, name.strip(" ")) for site, _, name in split}
        most = STATIONS_A_SITE * len(settings.sites) + MORE_STATIONS
        if len(self.stations) < len(settings.stations):
            raise _invalid("a station is named twice")
        if len(self.stations) > most:
            raise _invalid(f"there may be {most}: {STATIONS_A_SITE} for each of OVERREAD_SITES, and {MORE_STATIONS} more")
        for site, name in self.stations:
            if site not in self.sites:
                raise _invalid("what is before = must be one of OVERREAD_SITES")
            if not 0 < len(name) <= LONGEST or "\\" in name or not name.isprintable():
                raise _invalid(f"a StationName has 1 to {LONGEST} printable characters and no backslash")

    def of(self, site: str, image: Image) -> Origin:
        """Return the origin of an image of a site; a station that is not configured, character by character, is none."""
        found = Origin(site, str(image.header.get("StationName") or "").strip(" ") if image.header is not None else "")
        return found if found in self.stations else Origin(site)

    def shows(self, site: str, station: str) -> bool:
        """Tell whether a site or station is configured; the database keeps what once was."""
        return (site, station) in self.stations if station else site in self.sites


def _invalid(why: str) -> Refusal:
    return Refusal("config_invalid", f"OVERREAD_STATIONS: {why}.")
