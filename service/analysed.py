"""What is known of one image between its inference and its commit."""

from __future__ import annotations

from dataclasses import dataclass

from models.errors import Refusal
from models.image import Box, Image
from models.triage import Judgement
from service.items import Draft
from service.lineup import Served
from service.schemas import Extras
from service.store import Stored
from service.wall import Upload


@dataclass(frozen=True)
class Analysis:
    """One image between its inference and its commit.

    Attributes
    ----------
    upload : Upload
    region : Box or None
    image : Image
        Decoded as far as its model needs it.
    stored : Stored
        What is stored of it, or will be.
    served : Served
        The package that predicted, and the limits in force at this site.
    uid : str or None
        SOP Instance UID.
    known : Judgement or None
        The verdict, where it is in the store already.
    extras : Extras
        What else is answered.
    media_type : str
        Of the answer.
    refused : Refusal or None
        Of something asked for beside the result: raised once the result is committed.
    draft : Draft or None
        Of the worklist's item that it becomes.
    site : str
        Where the image came from: a configured name, or empty.
    """

    upload: Upload
    region: Box | None
    image: Image
    stored: Stored
    served: Served
    uid: str | None
    known: Judgement | None
    extras: Extras
    media_type: str
    refused: Refusal | None = None
    draft: Draft | None = None
    site: str = ""
