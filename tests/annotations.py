"""Annotation files, as QuPath or a table would bring them."""

from __future__ import annotations

import json
from pathlib import Path

from models.annotation import Annotation, geojson_of


def write_annotation(path: Path, annotation: Annotation) -> None:
    """Write GeoJSON, or a CSV of the points and strokes, by the suffix."""
    if path.suffix == ".csv":
        lines = ["x,y,label,stroke", *(f"{float(x)!r},{float(y)!r},," for x, y in annotation.points)]
        for number, scribble in enumerate(annotation.scribbles):
            lines += [f"{float(x)!r},{float(y)!r},{scribble.label},{number}" for x, y in scribble.line]
        path.write_text("\n".join([*lines, ""]))
    else:
        path.write_text(json.dumps(geojson_of(annotation)))
