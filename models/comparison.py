"""A candidate against the current package on the same held-out images: the document, and when it says worse.

``overread release`` writes it beside the card, ``overread promote`` reads it. It is no part of the package's identity: a
package may be compared again, with another one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.card import Finite, ModelCard, SegmenterCard
from models.errors import Refusal

REPORT = "comparison.json"
SEEN = "seen.json"
"""Files beside ``card.json``; packages without them are packages too."""
ALL_SITES = "all"
"""In the place of a site: all of them together."""
MIN_PATIENTS = 20
"""Fewer patients decide nothing, at a site or together: a bootstrap over so few says too little about its own error."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Compared(_Strict):
    """One of the two packages."""

    name: str
    version: str
    sha256: Digest


class Difference(_Strict):
    """A metric of both packages on the images of one site, or of all together.

    ``difference`` is the candidate's value minus the current one's; ``low`` and ``high`` bound its 95% interval (paired
    bootstrap: patients are drawn with all their images, and both packages are measured on the same draw). None where a value is
    not defined.
    """

    site: Annotated[str, Field(min_length=1)]
    metric: str
    larger_is_better: bool
    images: Annotated[int, Field(ge=1)]
    patients: Annotated[int, Field(ge=1)]
    current: Finite | None
    candidate: Finite | None
    difference: Finite | None
    low: Finite | None
    high: Finite | None

    @property
    def worse(self) -> bool:
        """Whether the candidate is worse with an interval that excludes zero, among enough patients."""
        if self.low is None or self.high is None or self.patients < MIN_PATIENTS:
            return False
        return self.high < 0 if self.larger_is_better else self.low > 0


class Comparison(_Strict):
    """Two packages on the same images, none of which either is known to have seen.

    Attributes
    ----------
    current, candidate : Compared
    data_sha256 : str
        Digest of the rows and images that both predicted.
    left_out : int
        Rows of the folder that were passed over, since a package was trained or calibrated on patients of theirs.
    loss : str
        Metric of the loss that the gate asks first; its mean over images, smaller is better.
    decisive : tuple of str
        Metrics that must not be worse at any site.
    margin : float
        How much worse the loss of all sites may be at most, by the upper end of its interval.
    differences : tuple of Difference
    worse : tuple of str
        Why the candidate counts as worse; empty if it does not. Follows from the rest.
    accepted : str or None
        Why a worse one was released all the same.
    """

    schema_version: Literal[1]
    created: str
    current: Compared
    candidate: Compared
    data_sha256: Digest
    left_out: Annotated[int, Field(ge=0)]
    loss: str
    decisive: Annotated[tuple[str, ...], Field(min_length=1)]
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    differences: Annotated[tuple[Difference, ...], Field(min_length=1)]
    worse: tuple[str, ...]
    accepted: Annotated[str, Field(min_length=1, max_length=512)] | None

    @model_validator(mode="after")
    def _follows(self) -> Comparison:
        if self.worse != why_worse(self.differences, self.loss, self.decisive, self.margin):
            raise ValueError("what is worse must follow from the differences")
        return self


def why_worse(differences: tuple[Difference, ...], loss: str, decisive: tuple[str, ...], margin: float) -> tuple[str, ...]:
    """Return why a candidate counts as worse, a sentence each; nothing if it does not.

    It counts as worse unless the upper end of the interval of the loss difference over all sites is at most ``margin`` (so
    that too little evidence is no evidence), and if at any site a decisive metric is worse with an interval that excludes zero.
    """
    together = [each for each in differences if each.site == ALL_SITES and each.metric == loss]
    if len(together) != 1:
        raise ValueError("the loss over all sites must stand there once")
    found = []
    for each in together:
        if each.patients < MIN_PATIENTS or each.high is None:
            found.append(f"{each.patients} patients are too few to tell; {MIN_PATIENTS} are needed.")
        elif each.high > margin:
            interval = f"{each.difference:+.4f} ({each.low:+.4f} to {each.high:+.4f})"
            found.append(f"Over all sites the loss changes by {interval}: more than {margin:g} worse cannot be ruled out.")
    for each in differences:
        if each.metric in decisive and each.worse:
            where = "over all sites" if each.site == ALL_SITES else f"at {each.site}"
            interval = f"{each.difference:+.4f} ({each.low:+.4f} to {each.high:+.4f})"
            found.append(f"{each.metric} {where} changes by {interval}.")
    return tuple(found)


def check_kind(new: ModelCard | SegmenterCard, old: ModelCard | SegmenterCard) -> None:
    """Refuse a package that says other things than the one it is to take the place of.

    Raises
    ------
    Refusal
        ``config_invalid`` for another task, other classes or findings, or other objects: that is another model, and labels and
        items of the one mean nothing to the other.
    """
    if isinstance(new, ModelCard) and isinstance(old, ModelCard):
        findings = [tuple(item.label for item in card.output.findings) for card in (new, old)]
        same = new.output.classes == old.output.classes and findings[0] == findings[1]
    else:
        same = isinstance(new, SegmenterCard) and isinstance(old, SegmenterCard) and new.output.label == old.output.label
    if not same:
        raise Refusal("config_invalid", "The package has another task or other classes: give it a name of its own.")


def read_comparison(package: Path) -> Comparison | None:
    """Read the comparison of a package, or None if it was never compared.

    Raises
    ------
    Refusal
        ``package_invalid`` if what is there is none.
    """
    try:
        return Comparison.model_validate_json((package / REPORT).read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refusal("package_invalid", f"{REPORT} cannot be read ({type(error).__name__}).") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise Refusal("package_invalid", f"{REPORT}, field {where}: {first['msg']}.") from error
