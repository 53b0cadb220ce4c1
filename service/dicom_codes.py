"""The codes of what DICOM has no codes for, in a scheme of our own; ``docs/dicom-results.md`` lists them all.

Code values have 16 characters at most and meanings 64, as the short string and the long string that hold them.
"""

from __future__ import annotations

SCHEME = "99OVERREAD"
"""Private schemes begin with 99 (PS3.3, 8.2), and are declared in each object that uses one."""
SCHEME_NAME = "Overread result codes"

Code = tuple[str, str, str]
"""Code value, coding scheme designator, meaning."""


def _own(value: str, meaning: str) -> Code:
    return value, SCHEME, meaning


ONE: Code = ("1", "UCUM", "no units")
PERCENT: Code = ("%", "UCUM", "percent")
NATS: Code = ("{nat}", "UCUM", "nats")
PIXELS: Code = ("{pixels}", "UCUM", "pixels")
UM2: Code = ("um2", "UCUM", "square micrometer")
PER_MM2: Code = ("/mm2", "UCUM", "per square millimeter")
PER_MEGAPIXEL: Code = ("{/megapixel}", "UCUM", "per megapixel")

PROBABILITY = _own("PROBABILITY", "Probability of the finding")
OPERATING_POINT = _own("OPERATINGPOINT", "Probability from which on the finding is called positive")
PREDICTED_LOSS = _own("PREDICTEDLOSS", "Predicted loss")
PREDICTED_LOSS_UNSEEN = _own("LOSSUNSEEN", "Predicted loss where the hospital was not trained on")
LOSS_PERCENTILE = _own("LOSSPERCENTILE", "Percentile of the predicted loss in the calibration set")
DOMAIN_DISTANCE = _own("DOMAINDISTANCE", "Distance from the training data")
DOMAIN_PERCENTILE = _own("DOMAINPERCENT", "Percentile of the distance in the calibration set")
ENTROPY = _own("ENTROPY", "Entropy")
COUNT = _own("OBJECTCOUNT", "Number of objects")
DENSITY = _own("OBJECTDENSITY", "Density of objects")
AREA_FRACTION = _own("AREAFRACTION", "Share of the area that objects cover")
AREA: Code = ("42798000", "SCT", "Area")
SCORE = _own("OBJECTSCORE", "Mean probability of the object's pixels")

IMAGE_DOUBT = _own("IMAGEDOUBT", "Doubt of the model about the image")
REGION_DOUBT = _own("REGIONDOUBT", "Doubt of the model about a region")
ANALYSED = _own("ANALYSEDREGION", "The part of the image that was analysed")

VERDICT = _own("VERDICT", "Verdict")
VERDICTS: dict[str, Code] = {
    "accept": _own("ACCEPT", "Within the limits"),
    "review": _own("REVIEW", "To be reviewed"),
    "refuse": _own("REFUSE", "Refused: nothing is called"),
}
REASON = _own("REASON", "Reason of the verdict")
REASON_CODES: dict[str, Code] = {
    "within_limits": _own("WITHINLIMITS", "Within the limits"),
    "predicted_loss_high": _own("LOSSHIGH", "The predicted loss is high"),
    "domain_far": _own("DOMAINFAR", "The image differs from the training data"),
    "out_of_domain": _own("OUTOFDOMAIN", "The image is too far from the training data"),
    "colour_image": _own("COLOURIMAGE", "A colour image was given to a model for grey images"),
    "phantom": _own("PHANTOM", "The subject is a quality control phantom"),
    "modality_not_stated": _own("NOMODALITY", "The header does not state the modality"),
    "body_part_not_stated": _own("NOBODYPART", "The header does not state the body part"),
    "view_not_stated": _own("NOVIEW", "The header does not state the view"),
    "age_not_stated": _own("NOAGE", "The header does not state the patient's age"),
    "uid_reused": _own("UIDREUSED", "The SOP Instance UID was seen with other pixels"),
}
"""One for each key of :data:`models.triage.REASONS`."""
CALL = _own("CALL", "Call at the operating point")
POSITIVE: Code = ("10828004", "SCT", "Positive")
NEGATIVE: Code = ("260385009", "SCT", "Negative")
NOT_CALLED = _own("NOTCALLED", "Not called, as the image is refused")

_LABELS: dict[str, Code] = {
    "pneumonia": ("233604007", "SCT", "Pneumonia"),
    "nucleus": ("84640000", "SCT", "Nucleus"),
}
LABEL_PREFIX = "LABEL:"


def label_code(label: str) -> Code:
    """Return the code of a card's label: SNOMED CT's where it is known here, else one of our own, made of the label."""
    return _LABELS.get(label.strip().lower()) or _own(LABEL_PREFIX + label, label[:64])
