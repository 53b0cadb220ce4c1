// Drop a scan, and see what the model says of it.

import { ask, blobOf, query } from "./api.js";
import { choice, h, modelChoice, note, put } from "./dom.js";
import { showKeys, setKeys } from "./keys.js";
import { saysBoxes } from "./result.js";
import { toolbar } from "./toolbar.js";
import { Viewer, viewerKeys } from "./viewer.js";
import { wordsOf } from "./words.js";

const TYPES = { png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg" };

/** The media type of a file: by its first bytes, since DICOM files are often named anyhow. */
async function typeOf(file) {
  const head = new Uint8Array(await file.slice(0, 132).arrayBuffer());
  const text = String.fromCharCode(...head);
  if (text.startsWith("\x89PNG")) return "image/png";
  if (text.startsWith("\xff\xd8\xff")) return "image/jpeg";
  if (text.slice(128) === "DICM") return "application/dicom";
  return TYPES[file.name.split(".").pop().toLowerCase()] ?? "application/dicom";
}

/** The view. `models` are those of /v1/models, `session` is who is signed in. Returns what ends it. */
export function scanView(main, { models, mayScan, session }) {
  if (!mayScan) {
    put(main, h("div", { class: "plain" }, h("h1", {}, "Scan"), h("p", {}, "Your role reads what was flagged, and sends no scans. ",
      h("a", { href: "#worklist" }, "To the worklist"))));
    return () => {};
  }
  let viewer = null;
  let asked = 0;
  let chosen = models[0];
  let site = session.sites.find((name) => name === sessionStorage.getItem("site")) ?? "";
  const setSite = (name) => {
    site = name;
    sessionStorage.setItem("site", name);
  };
  const names = [["", "not stated"], ...session.sites.map((name) => [name, name])];
  const whichSite = () => session.sites.length > 0 && (session.site
    ? h("span", {}, h("span", { class: "soft" }, "Site "), session.site)
    : choice("Site", names, site, setSite));
  const whichModel = () => modelChoice(models, chosen, (model) => { chosen = model; });
  const input = h("input", { type: "file", id: "file", class: "visually-hidden", accept: ".dcm,.png,.jpg,.jpeg,application/dicom,image/png,image/jpeg" });
  const state = h("p", { role: "status" });
  const zone = h("div", { class: "drop" },
    h("h1", {}, "Drop a scan here"),
    h("p", { class: "soft" }, "DICOM, PNG or JPEG. It goes to this service alone; names and numbers in its header are not kept."),
    h("p", {}, h("label", { class: "button primary", for: "file" }, "Choose a file"), input),
    h("div", { class: "row" }, whichSite(), whichModel()),
    state);
  const stage = h("div", { class: "stage" });
  const panel = h("aside", { class: "panel", "aria-label": "What the model says", hidden: true });
  put(main, h("div", { class: "reading" }, put(stage, zone), panel));

  async function send(file) {
    const turn = ++asked;
    put(state, `Reading ${Math.max(1, Math.round(file.size / 1024))} kB…`);
    zone.setAttribute("aria-busy", "true");
    try {
      const model = chosen;
      const heatmap = model.card.task === "classification" ? "true" : undefined;
      const path = "/v1/predict" + query({ model: model.name, site, picture: "true", heatmap });
      const answer = await ask("POST", path, { body: file, type: await typeOf(file) });
      if (turn === asked) await show(answer, model);
    } catch (problem) {
      if (turn !== asked) return;
      put(state, "");
      note(wordsOf(problem), { bad: true });
    } finally {
      zone.removeAttribute("aria-busy");
    }
  }

  async function show(answer, model) {
    viewer?.close();
    viewer = new Viewer("The scan. Arrow keys move it, plus and minus zoom.");
    const again = h("label", { class: "button", for: "file" }, "Another scan");
    put(stage, viewer.element, input);
    await viewer.show(blobOf(answer.picture), answer.picture);
    const bar = toolbar(viewer, again, whichSite(), whichModel());
    stage.prepend(bar);
    await viewer.says(answer);
    panel.hidden = false;
    put(panel, saysBoxes(answer, model));
    put(state, "");
    setKeys(viewerKeys(viewer));
    viewer.fit();
    viewer.target.focus();
  }

  input.addEventListener("change", () => { if (input.files[0]) send(input.files[0]); input.value = ""; });
  const over = (event) => { event.preventDefault(); stage.classList.add("over"); };
  stage.addEventListener("dragover", over);
  stage.addEventListener("dragleave", () => stage.classList.remove("over"));
  stage.addEventListener("drop", (event) => {
    event.preventDefault();
    stage.classList.remove("over");
    if (event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
  });
  setKeys({});
  return () => { asked++; viewer?.close(); };
}

/** Keys of the view that are not of one letter. */
export const scanHelp = () => showKeys([["← ↑ → ↓", "Move the image"]]);
