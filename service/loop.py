"""The expert's loop of one worker: what is kept, which items there are, and who holds them."""

from __future__ import annotations

from service.intake import Intake
from service.items import Items
from service.kept import Kept
from service.labels import Labels
from service.leases import Leases
from service.pseudonyms import Pseudonyms, read_key
from service.settings import Settings
from service.store import Store
from service.telemetry import Telemetry
from service.worklist import Worklist


class Loop:
    """The parts of the loop, put together with the settings.

    Raises
    ------
    Refusal
        ``config_invalid`` as :func:`service.pseudonyms.read_key` and :meth:`service.store.Store.check_key` say.
    """

    def __init__(self, settings: Settings, store: Store, telemetry: Telemetry) -> None:
        self.pseudonyms = Pseudonyms(read_key(settings.pseudonym_key))
        store.check_key(self.pseudonyms.fingerprint())
        self.kept = Kept(settings.kept)
        self.items = Items(store, self.kept, settings.keep_days, settings.keep_max_bytes)
        self.intake = Intake(self.items, self.kept, self.pseudonyms, settings.keep_random_share, telemetry)
        self.leases = Leases(store, settings.lease_minutes, settings.readers)
        self.labels = Labels(store, settings.readers)
        self.worklist = Worklist(store, settings.readers)
