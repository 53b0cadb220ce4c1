// Keys of one letter: a view says what they do, and the list of them is what is listened to.

import { h, put } from "./dom.js";

let current = {};

/** Set the keys of a view: key -> [what it does, run]. "Mod+z" is Ctrl or Cmd with z. */
export function setKeys(keys) {
  current = keys;
}

/** Whether keys of one letter are listened to; some readers' voice or typing aids would set them off. */
export function keysOn() {
  return localStorage.getItem("keys") !== "off";
}

function named(event) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey) return (event.shiftKey ? "Mod+Shift+" : "Mod+") + key;
  return key;
}

window.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.altKey || event.isComposing || document.querySelector("dialog[open]")) return;
  const inField = event.target.closest("input:not([type=range]), textarea, select");
  const onControl = event.target.closest("button, a, input, select, summary");
  const name = named(event);
  const found = current[name];
  if (!found || inField || (onControl && ["Enter", " "].includes(event.key))) return;
  if (name.length === 1 && !keysOn()) return;
  event.preventDefault();
  found[1]();
});

const SHOWN = { Enter: "Enter", Escape: "Esc", "Mod+z": "Ctrl Z", "Mod+y": "Ctrl Y", "Mod+Shift+z": "Ctrl ⇧ Z", " ": "Space" };

/** Show the list of keys. `more` are [keys, what they do] that are listened to elsewhere. */
export function showKeys(more = []) {
  const rows = [...Object.entries(current).map(([key, [text]]) => [SHOWN[key] ?? key.toUpperCase(), text]), ...more];
  const box = h("input", { type: "checkbox", id: "keys-on" });
  box.checked = keysOn();
  box.addEventListener("change", () => localStorage.setItem("keys", box.checked ? "on" : "off"));
  const dialog = h("dialog", { "aria-labelledby": "keys-title" });
  put(dialog,
    h("h1", { id: "keys-title" }, "Keys"),
    rows.length
      ? h("dl", { class: "keys" }, rows.map(([key, text]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, text)]))
      : h("p", {}, "This view has no keys of its own."),
    h("p", {}, h("label", { class: "row", for: "keys-on" }, box, "Listen to keys of one letter")),
    h("button", { class: "primary", onclick: () => dialog.close() }, "Close"));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
