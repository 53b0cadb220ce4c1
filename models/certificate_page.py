"""The report of a site as one self-contained HTML page: what the JSON document says, and pictures of it, nothing loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

Document = dict[str, Any]

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}"
    "table{border-collapse:collapse;width:100%;margin:1rem 0}td,th{border-bottom:1px solid #ccc;padding:.3rem .6rem;"
    "text-align:left;vertical-align:top}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}"
    "code{word-break:break-all}svg{width:100%;height:auto}.warn{border-left:4px solid #b45309;padding-left:1rem}"
)
WIDTH, LEFT, RIGHT, LINE = 800, 250, 20, 34
BLUE, GREY, RED = "#0b5394", "#767676", "#b45309"


def _words(name: str) -> str:
    return escape(name.replace("_", " "))


def _share(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def _value(figure: Document, key: str) -> str:
    value = figure.get(key)
    return "–" if value is None else f"{value:.3f} nats" if figure["metric"] == "loss" else _share(value)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells are HTML, and all but the first column are aligned as numbers."""
    head = "".join(f'<th class="n">{cell}</th>' if place else f"<th>{cell}</th>" for place, cell in enumerate(header))
    lines = (
        "".join(f'<td class="n">{cell}</td>' if place else f"<td>{cell}</td>" for place, cell in enumerate(row)) for row in rows
    )
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _svg(height: int, title: str, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}" font-family="system-ui,sans-serif" '
        f'font-size="14">' + "".join(parts) + "</svg>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#1b1b1b">{words}</text>'


def intervals(figures: Sequence[Document]) -> str:
    """Draw the rates with their intervals, and in grey those of the labels alone."""
    shown = [figure for figure in figures if figure["metric"] != "loss" and figure["value"] is not None]
    foot = 20 + LINE * len(shown)

    def across(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value

    parts = [
        _line(across(tick / 5), 10, across(tick / 5), foot, "#ddd")
        + _text(across(tick / 5), foot + 18, f"{20 * tick}%", "middle")
        for tick in range(6)
    ]
    for place, figure in enumerate(shown):
        y, alone = 20 + LINE * (place + 0.4), figure["labels_alone"]
        parts += [
            _text(LEFT - 12, y + 5, _words(figure["metric"]), "end"),
            _line(across(alone["low"]), y + 8, across(alone["high"]), y + 8, GREY, 2),
            _line(across(figure["low"]), y, across(figure["high"]), y, BLUE, 4),
            f'<circle cx="{across(figure["value"]):.1f}" cy="{y:.1f}" r="6" fill="{BLUE}"/>',
        ]
    return _svg(foot + 28, "Figures with their 95% intervals", parts)


def accepted(triage: Document) -> str:
    """Draw the error among accepted images, and its bound, against the share that is accepted."""
    points = [point for point in triage["curve"] if point["n"]]
    top = max([2 * triage["target_error"], *(min(1.0, point["error_at_most"]) for point in points)]) * 1.05
    base, height = 260, 240

    def place(share: float, error: float) -> tuple[float, float]:
        return 60 + (WIDTH - 60 - RIGHT) * share, base - height * error / top

    def path(key: str, colour: str) -> str:
        corners = " ".join("{:.1f},{:.1f}".format(*place(point["accepted"], point[key])) for point in points)
        return f'<polyline points="{corners}" fill="none" stroke="{colour}" stroke-width="2.5"/>'

    level = place(0, triage["target_error"])[1]
    parts = [_line(60, base, WIDTH - RIGHT, base, GREY), _line(60, level, WIDTH - RIGHT, level, RED, 1.5)]
    parts += [_text(place(tick / 5, 0)[0], base + 18, f"{20 * tick}%", "middle") for tick in range(6)]
    parts += [_text(52, level + 5, _share(triage["target_error"]), "end"), _text(52, base + 5, "0%", "end")]
    parts += [path("error", BLUE), path("error_at_most", GREY), _text(60, 14, "error among accepted, and its 95% bound (grey)")]
    parts += [_text(WIDTH - RIGHT, base + 36, "share of the site that is accepted", "end")]
    return _svg(base + 44, "Error among accepted images against their share", parts)


def _figures(document: Document) -> str:
    rows = []
    for figure in document["figures"]:
        name = _words(figure["metric"]) + (f" ({escape(figure['finding'])})" if figure["finding"] else "")
        if figure["value"] is None:
            rows.append([name, "–", escape(figure["note"]), "", "", ""])
            continue
        alone, rho = figure["labels_alone"], figure["correlation"]
        rows.append([
            name, _value(figure, "value"), f"{_value(figure, 'low')} to {_value(figure, 'high')}", str(figure["n"]),
            "–" if rho is None else f"{rho:.2f}",
            f"{_value(alone | {'metric': figure['metric']}, 'low')} to {_value(alone | {'metric': figure['metric']}, 'high')}",
        ])  # fmt: skip
    return _table(["figure", "value", "95% interval", "labels", "correlation", "interval of the labels alone"], rows)


def _limits(document: Document) -> str:
    if document["limits"] is None:
        return "<p>Limits with a promise need labels that were drawn at random; these were drawn by doubt.</p>"
    rows = []
    for limit in document["limits"]:
        what = f"{_words(limit['metric'])} ({escape(limit['finding'])}) at least {_share(limit['target'])}"
        if limit["limit"] is None:
            rows.append([what, "none", f"at least {limit['needed']} labelled images within a limit are needed", ""])
        else:
            side = "from" if limit["metric"].startswith("positive") else "up to"
            rows.append([
                what, f"{side} {limit['limit']:.3f}", f"{limit['right']} of {limit['n']} right: {_share(limit['low'])} or more",
                _share(limit["share"]),
            ])  # fmt: skip
    return _table(["promise (95% confidence)", "probability", "labelled images within", "share of the site"], rows)


def _triage(document: Document) -> str:
    found = []
    for triage in document["triage"] or []:
        rows = []
        for name, words in (("card", "the card's limit"), ("site", "this site's limit")):
            at = triage[name]
            if at is None:
                rows.append(
                    [words, "none", f"{triage['needed']} accepted labels without an error are needed at least", "", "", ""]
                )
                continue
            rows.append([
                words, f"{at['limit']:.1f}", f"{at['wrong']} of {at['n']} wrong: at most {_share(at['error_at_most'])}",
                *(_share(at[kind]) for kind in ("accepted", "reviewed", "refused")),
            ])  # fmt: skip
        found.append(
            f"<p>Accepted images shall be wrong in at most {_share(triage['target_error'])}, with 95% confidence.</p>"
            + _table(["", "loss percentile", "error among accepted", "accept", "review", "refuse"], rows)
            + accepted(triage)
        )
    return "".join(found)


def _comparison(document: Document) -> str:
    comparison = document["comparison"]
    if comparison is None:
        return ""
    rows = [
        [_words(row["metric"]), _value(row, "value"), f"{_value(row, 'low')} to {_value(row, 'high')}", str(row["n"]),
         _share(row.get("disagreement"))]
        for row in comparison["figures"]
    ]  # fmt: skip
    other = comparison["model"]
    return (
        f"<h2>Against {escape(other['name'])} {escape(other['version'])}</h2><p>This model less the other, on the same "
        f"{comparison['images']} images: below zero is better.</p>"
        + _table(["figure", "difference", "95% interval", "labels that tell", "called differently"], rows)
    )


def _trace(document: Document) -> str:
    model, site, labels = document["model"], document["site"], document["labels"]
    comparison = document["comparison"]
    rows = [
        ("model", f"{escape(model['name'])} {escape(model['version'])}"),
        ("model package", f"<code>{model['sha256']}</code>"),
        ("model.onnx", f"<code>{model['model_sha256']}</code>"),
        *([("package compared with", f"<code>{comparison['model']['sha256']}</code>")] if comparison else []),
        ("site", f"{site['images']} images, <code>{site['sha256']}</code>"),
        ("labels", f"{labels['n']}, drawn {escape(labels['drawn'])}, <code>{labels['sha256']}</code>"),
        ("draw", escape(str(labels["draw"])) if labels["draw"] else "not by overread certify --draw"),
        ("command", f"<code>{escape(document['command'])}</code>"),
        ("software", f"Overread {escape(document['overread'])}"),
        ("date", escape(document["created"])),
    ]
    return _table(["", ""], rows)


def page(document: Document) -> str:
    """Return the page of a document of :func:`models.certify.certify`."""
    site, labels = document["site"], document["labels"]
    notes = "".join(f'<p class="warn">{escape(note)}</p>' for note in document["notes"])
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>What a model does at a site</title>'
        f"<style>{STYLE}</style></head><body><h1>What {escape(document['model']['name'])} does at this site</h1>"
        f"<p>From {labels['n']} labels and the model's own predictions for all {site['answered']} images that it answers "
        f"({site['refused']} refused, {sum(site['failed'].values())} files not readable). Not for diagnosis.</p>{notes}"
        f"<h2>Figures</h2>{intervals(document['figures'])}{_figures(document)}"
        "<p>Intervals are for images like those of this site. Grey: what the same labels would say without the predictions. "
        "Correlation: how well the predictions foretell what the labels say; near 0 they are of no use, and not used.</p>"
        f"<h2>Limits for this site</h2>{_limits(document)}{_triage(document)}{_comparison(document)}"
        f"<h2>Where it comes from</h2>{_trace(document)}</body></html>\n"
    )
