"""Which media type an answer has: the Accept header against what there is (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from models.errors import Refusal

JSON = "application/json"
GEOJSON = "application/geo+json"


def _ranges(accept: str) -> Iterator[tuple[str, float]]:
    """Yield (media range, quality); what is malformed is passed over, as if it were not there."""
    for element in accept.split(","):
        name, *parameters = (part.strip().lower() for part in element.split(";"))
        quality = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = -1.0
        kind, slash, rest = name.partition("/")
        if slash and kind and rest and 0 <= quality <= 1:
            yield name, quality


def choose(accept: str, offers: Sequence[str]) -> str:
    """Return the media type of an answer.

    Parameters
    ----------
    accept : str
        The header; an empty or unreadable one accepts everything.
    offers : sequence of str
        What there is, the default first.

    Returns
    -------
    str
        The offer of the highest quality; between equals the one that is named more exactly, then the earlier one.

    Raises
    ------
    Refusal
        ``not_acceptable`` if every offer has quality 0.
    """
    ranges = list(_ranges(accept))
    if not ranges:
        return offers[0]
    ranked = []
    for place, offer in enumerate(offers):
        exactness = {offer: 2, offer.partition("/")[0] + "/*": 1, "*/*": 0}
        # The most exact range that matches decides, whatever its quality: "*/*, application/json;q=0" excludes JSON.
        matching = [(exactness[name], quality) for name, quality in ranges if name in exactness]
        exact, quality = max(matching, default=(0, 0.0))
        ranked.append((quality, exact, -place, offer))
    best = max(ranked)
    if best[0] == 0:
        raise Refusal("not_acceptable", f"There is {' and '.join(offers)}.")
    return best[3]
