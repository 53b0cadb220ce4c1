// What to read next: the list, and the reading of one item after another.

import { ask, query } from "./api.js";
import { choice, h, modelChoice, note, put, table } from "./dom.js";
import { setKeys } from "./keys.js";
import { Reading } from "./reading.js";
import { verdictChip } from "./result.js";
import { day, wordsOf } from "./words.js";

const SIZES = [10, 30, 100];

/** The view. `models` are those of /v1/models. Returns what ends it. */
export function worklistView(main, { models }) {
  let reading = null;
  let model = models[0];
  let size = 30;
  let ended = false;
  const leave = () => reading?.leave();
  window.addEventListener("pagehide", leave);

  async function list() {
    reading = null;
    setKeys({ Enter: ["Read the first one", () => next()], u: ["Look again for new ones", () => list()] });
    let found;
    try {
      found = await ask("GET", "/v1/worklist" + query({ budget: size, model: model.name }));
    } catch (problem) {
      put(main, h("div", { class: "plain" }, h("h1", {}, "Worklist"), h("p", {}, wordsOf(problem)), h("button", { onclick: list }, "Try again")));
      return;
    }
    if (ended || reading) return;
    put(main, h("div", { class: "plain" }, head(found), found.items.length ? rows(found.items) : empty(found)));
  }

  function head(found) {
    const counts = [
      [found.open + found.adjudicate, "waiting"], [found.leased, "being read"], [found.done, "done"],
      [found.waiting_for_scores, "waiting for the current model’s scores"],
    ];
    return [
      h("div", { class: "row spread top" },
        h("div", {}, h("h1", {}, "Worklist"),
          h("p", { class: "soft" }, "The scans whose label helps most: doubtful, different from each other, over all sites; and some at random.")),
        h("button", { class: "primary big", onclick: next, disabled: !found.items.length }, "Read the first one ", h("kbd", {}, "Enter"))),
      h("div", { class: "row spread counts" },
        h("p", { class: "row" }, counts.filter(([n], i) => n || i < 3).map(([n, text]) => h("span", { class: "count" }, h("strong", {}, n), " ", text))),
        h("div", { class: "row" },
          modelChoice(models, model, (chosen) => { model = chosen; list(); }),
          choice("Show", SIZES.map((n) => [n, n]), size, (n) => { size = Number(n); list(); }),
          h("button", { onclick: list }, "Refresh"))),
    ];
  }

  const empty = (found) => h("div", { class: "card" }, h("h2", {}, "Nothing is waiting"),
    h("p", {}, found.waiting_for_scores
      ? "Some scans are being scored by the current model; they come back by themselves."
      : "Scans that the model doubts come here by themselves, and a share of all others."));

  const rows = (items) => h("div", { class: "list" }, table("Scans to read, the most useful first",
    [["#"], ["Why this one"], ["Model says"], ["Expected error"], ["Site"], ["Since"], [""]],
    items.map((item, i) => [
      String(i + 1),
      h("ul", { class: "why" }, item.why.map(({ message }) => h("li", {}, message))),
      item.blind ? h("span", { class: "soft" }, "not shown") : verdictChip(item.verdict),
      item.blind ? h("span", { class: "soft" }, "not shown")
        : [h("meter", { min: 0, max: 100, value: item.loss_percentile, "aria-hidden": "true" }), h("small", {}, `higher than ${Math.round(item.loss_percentile)} of 100`)],
      item.site || h("span", { class: "soft" }, "none"),
      day(item.created_at),
      h("button", { "aria-label": `Read number ${i + 1}`, onclick: () => open(item) }, "Read"),
    ])));

  /** An item with its result, its pixels, and where the evidence lies, if its reader is to see that. */
  async function whole({ item_id, image_sha256, blind, verdict }) {
    const heatmap = model.card.task === "classification" && !blind && verdict !== "refuse" ? "true" : undefined;
    const detail = await ask("GET", `/v1/items/${item_id}` + query({ heatmap }));
    return { detail, image: await ask("GET", `/v1/images/${image_sha256}`) };
  }

  async function take(wanted) {
    try {
      const lease = await ask("POST", "/v1/worklist/lease", { json: { model: model.name, ...wanted } });
      const { detail, image } = await whole(lease.item);
      return { lease, detail: { ...detail, item: lease.item }, image };
    } catch (problem) {
      if (problem.code === "worklist_empty") note("Nothing is waiting any more. Thank you.");
      else note(wordsOf(problem), { bad: true });
      return null;
    }
  }

  /** `why` is what the list said of a wanted item. */
  async function read(wanted, why) {
    const taken = await take(wanted);
    if (ended) return;
    if (!taken) {
      await list();
      return;
    }
    if (why) taken.detail.item = { ...taken.detail.item, why };
    reading = new Reading(main, { ...taken, model, next, list, again });
    await reading.begin();
  }

  const next = () => read({});
  const open = ({ item_id, why }) => read({ item_id }, why);

  /** Open what was sent last, to send it otherwise. */
  async function again({ item, label_id, draft }) {
    try {
      const given = await whole(item);
      await reading?.leave();
      reading = new Reading(main, { lease: null, ...given, model, next, list, again, replaces: label_id, draft });
      await reading.begin();
    } catch (problem) {
      note(wordsOf(problem), { bad: true });
    }
  }

  list();
  return () => {
    ended = true;
    window.removeEventListener("pagehide", leave);
    return leave();
  };
}
