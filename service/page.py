"""The interface's documentation as a page: made here from the OpenAPI document, so it needs no script and no other host."""

from __future__ import annotations

from functools import lru_cache
from html import escape
from typing import Any

from service.openapi import document

_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, CanvasText 20%, Canvas); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1.5rem; }
h2 { font-size: 1.05rem; margin: 2rem 0 .25rem; border-top: 1px solid var(--line); padding-top: 1rem; overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
pre { overflow-x: auto; padding: .75rem; border: 1px solid var(--line); border-radius: .4rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); }
"""

_EXAMPLE = """overread example --out .
curl -s -H 'Content-Type: application/dicom' --data-binary @chest-phantom.dcm \\
  http://127.0.0.1:3000/v1/predict
curl -s -H 'Content-Type: image/png' -H 'Accept: application/geo+json' --data-binary @tissue-phantom.png \\
  'http://127.0.0.1:3000/v1/predict?model=nuclei'"""


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[1])
    if "anyOf" in schema:
        return " or ".join(_type(item) for item in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("const", schema.get("type", "any")))


def _operation(method: str, route: str, operation: dict[str, Any]) -> str:
    roles = ", ".join(operation.get("x-roles", ["anyone"]))
    rows = []
    for status, answer in operation["responses"].items():
        kinds = ", ".join(answer.get("content", {}))
        rows.append(f"<tr><td>{status}</td><td>{escape(answer['description'])}</td><td><code>{escape(kinds)}</code></td></tr>")
    takes = ", ".join(operation.get("requestBody", {}).get("content", {}))
    query = ", ".join(f"{item['name']} ({item['in']})" for item in operation.get("parameters", []))
    facts = [f"For: {roles}."]
    if takes:
        facts.append(f"Takes: {takes}.")
    if query:
        facts.append(f"Parameters: {query}.")
    return (
        f"<h2><code>{method.upper()} {escape(route)}</code></h2><p>{escape(operation['summary'])}. {escape(' '.join(facts))}</p>"
        f"<table><thead><tr><th>Status</th><th>Meaning</th><th>Type</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _schema(name: str, schema: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code></td><td>{escape(_type(inner))}</td></tr>"
        for field, inner in schema.get("properties", {}).items()
    )
    text = escape(schema.get("description", "").replace("``", ""))
    return f"<h2>{escape(name)}</h2><p>{text}</p><table><tbody>{rows}</tbody></table>"


@lru_cache(maxsize=1)
def page() -> str:
    """Return the page, HTML."""
    api = document()
    operations = "".join(_operation(method, route, op) for route, ops in api["paths"].items() for method, op in ops.items())
    schemas = "".join(_schema(name, schema) for name, schema in api["components"]["schemas"].items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Overread</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>Overread {escape(api['info']['version'])}</h1>"
        f"<p>{escape(api['info']['description'])} Send a chest X-ray, or a stained slide where such a model is loaded:</p>"
        f"<pre>{escape(_EXAMPLE)}</pre>"
        '<p>The same as a document: <a href="/v1/openapi.json">/v1/openapi.json</a>. '
        'The models and their cards: <a href="/v1/models">/v1/models</a>.</p>'
        f"{operations}<h1>Documents</h1>{schemas}</body></html>"
    )
