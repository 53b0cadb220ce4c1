// The HTTP interface, as the page uses it. Every request carries the header that pages of other origins cannot send.

/** What the service refused, with its stable code. */
export class Problem extends Error {
  constructor(code, detail, status) {
    super(detail);
    this.code = code;
    this.status = status;
  }
}

/**
 * Ask the service.
 *
 * `json` is sent as such; `body` is sent raw, declared to be `type`. Returns the answer's JSON, or a Blob where it is no JSON.
 * Throws a Problem; one with the code "unreachable" where there was no answer.
 */
export async function ask(method, path, { json, body, type, headers = {}, keepalive = false } = {}) {
  const sent = { "x-overread-request": "page", ...headers };
  if (json !== undefined) {
    sent["content-type"] = "application/json";
    body = JSON.stringify(json);
  } else if (type) sent["content-type"] = type;
  let response;
  try {
    response = await fetch(path, { method, headers: sent, body, keepalive, credentials: "same-origin" });
  } catch {
    throw new Problem("unreachable", "The service does not answer. What you did is still here; try again.", 0);
  }
  const kind = response.headers.get("content-type") ?? "";
  if (!response.ok) {
    const told = kind.startsWith("application/problem+json") ? await response.json() : {};
    if (response.status === 401) window.dispatchEvent(new Event("signed-out"));
    throw new Problem(told.code ?? "unexpected", told.detail ?? `The service answered ${response.status}.`, response.status);
  }
  return kind.startsWith("application/json") ? response.json() : response.blob();
}

/** Return the query of a URL, without what is not set. */
export function query(values) {
  const set = Object.entries(values).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return set.length ? "?" + new URLSearchParams(set) : "";
}

/** Return a picture that came within an answer, as base64. */
export function blobOf({ data, media_type }) {
  return new Blob([Uint8Array.from(atob(data), (character) => character.charCodeAt(0))], { type: media_type });
}
