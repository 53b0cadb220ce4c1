"""What is kept of a scan's header beside its pixels: enough to judge it again, nothing that says who the patient is."""

from __future__ import annotations

from math import floor

from pydicom.dataset import Dataset

from models.card import InputSpec
from models.dicom_header import age_years, stated
from models.image import Image
from models.rendered import Picture
from service.loop_schemas import Facts

OLDEST = 90
"""Years. Above, an age is rare enough to be part of an identity, and is kept as this."""


def facts_of(image: Image, picture: Picture, spec: InputSpec) -> Facts:
    """Return the facts of an image.

    Code strings are kept only where the model card names them: any other text of a header could be anything.

    Parameters
    ----------
    image : Image
        Accepted by the card before.
    picture : Picture
        Its rendering.
    spec : InputSpec
        Of the card.
    """
    header = image.header if image.header is not None else Dataset()
    accepted = {"Modality": spec.modalities, "BodyPartExamined": spec.body_parts, "ViewPosition": spec.views}
    modality, body_part, view = (
        value if (value := stated(header, keyword)) in values else None for keyword, values in accepted.items()
    )
    age = age_years(header)
    return Facts(
        bits=16 if picture.bits == 16 else 8,
        window=picture.window,
        pixel_spacing_mm=image.spacing_mm,
        modality=modality,
        body_part=body_part,
        view=view,
        age_years=None if age is None else max(0, min(OLDEST, floor(age))),
        phantom=stated(header, "QualityControlSubject") == "YES",
        burned_in={"YES": "yes", "NO": "no"}.get(stated(header, "BurnedInAnnotation"), "unknown"),
    )


def header_of(facts: Facts, uid: str | None) -> Dataset:
    """Return a header that is judged as the original's was.

    Parameters
    ----------
    facts : Facts
    uid : str or None
        SOP Instance UID of the verdict that is to be renewed.
    """
    header = Dataset()
    values = {
        "SOPInstanceUID": uid,
        "Modality": facts.modality,
        "BodyPartExamined": facts.body_part,
        "ViewPosition": facts.view,
        "PatientAge": None if facts.age_years is None else f"{facts.age_years:03d}Y",
        "QualityControlSubject": "YES" if facts.phantom else None,
    }
    for keyword, value in values.items():
        if value is not None:
            setattr(header, keyword, value)
    return header
