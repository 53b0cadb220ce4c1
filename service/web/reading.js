// One item in front of its reader: the image, what the model says, and the label.

import { ask } from "./api.js";
import { h, note, put } from "./dom.js";
import { setKeys, showKeys } from "./keys.js";
import { Hold } from "./lease.js";
import { Marks, TOOLS } from "./marks.js";
import { saysBoxes } from "./result.js";
import { toolbar } from "./toolbar.js";
import { Viewer, viewerKeys } from "./viewer.js";
import { SKIPS, wordsOf } from "./words.js";

/** A name that nothing else has; randomUUID() is there over TLS and on this machine only. */
const fresh = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export class Reading {
  /**
   * `lease` is null where a sent label is corrected, whose `replaces` is the label's id and `draft` what it held. `next`, `list` and
   * `again` lead on.
   */
  constructor(main, given) {
    Object.assign(this, { main, ...given });
    this.item = given.detail.item;
    this.result = given.detail.result;
    this.blind = this.item.blind;
    this.objects = this.result.task === "segmentation";
    this.classes = this.objects ? [] : given.model.card.output.classes;
    this.chosen = null;
    this.past = [];
    this.future = [];
    this.started = performance.now();
    this.busy = false;
  }

  async begin() {
    this.viewer = new Viewer("The scan. Arrow keys move it; with a tool chosen they move a cross, and Space marks.");
    this.stage = h("div", { class: "stage" }, this.viewer.element);
    this.panel = h("aside", { class: "panel", "aria-label": "Label" });
    this.root = h("div", { class: "reading", "aria-busy": "true" }, this.stage, this.panel);
    // Whoever clicks with a mouse goes on with the keys of the view: Enter saves, and does not press the same button again
    this.root.addEventListener("click", ({ detail, target }) => { if (detail > 0 && target.closest("button")) this.viewer.target.focus(); });
    put(this.main, this.root);
    await this.viewer.show(this.image, this.item);
    if (!this.blind) await this.viewer.says(this.result);
    this.doubtful = this.blind ? [] : (this.result.doubtful_regions ?? []);
    this.marks = this.objects ? new Marks(this.viewer, () => this.#changed()) : null;
    this.stage.prepend(toolbar(this.viewer, this.marks && this.#tools()));
    this.#fillPanel();
    const draft = this.draft ?? JSON.parse(sessionStorage.getItem(this.#draftKey) ?? "null");
    if (draft) this.#restore(draft);
    if (this.lease) this.hold = new Hold(this.lease, () => { this.lostBanner.hidden = false; });
    setKeys(this.#keys());
    this.#changed();
    this.viewer.fit();
    this.viewer.target.focus({ preventScroll: true });
    this.root.removeAttribute("aria-busy");
  }

  /** Whether the model said something that this reader knows of, and could confirm. */
  get confirmable() {
    return !this.blind && this.result.verdict !== "refuse" && (!this.objects || this.result.objects.length > 0);
  }

  get #draftKey() {
    return `draft-${this.item.item_id}`;
  }

  #tools() {
    this.toolButtons = Object.fromEntries(Object.entries(TOOLS).map(([tool, [name, key, , , text]]) => [tool,
      h("button", { type: "button", title: `${text} (${key.toUpperCase()})`, onclick: () => this.marks.use(tool) }, name)]));
    return h("span", { class: "group marks", role: "group", "aria-label": "Marking" }, Object.values(this.toolButtons));
  }

  #fillPanel() {
    const { item, result } = this;
    this.sendButton = h("button", { class: "primary big", onclick: () => this.send(false) }, "Save and next ", h("kbd", {}, "Enter"));
    this.rightButton = h("button", { onclick: () => this.send(true) }, "The model is right ", h("kbd", {}, "M"));
    this.undoButton = h("button", { onclick: () => this.undo() }, "Undo ", h("kbd", {}, "U"));
    this.redoButton = h("button", { onclick: () => this.redo() }, "Redo");
    this.choices = this.classes.map((name, i) => h("button", {
      type: "button", role: "radio", "aria-checked": "false", tabindex: "0", class: "choice", onclick: () => this.choose(name),
    }, h("kbd", {}, i + 1), name));
    this.state = h("p", { class: "soft", role: "status" });
    put(this.panel,
      this.replaces && h("p", { class: "banner" }, "You are correcting a label that was saved."),
      (this.lostBanner = h("p", { class: "banner", role: "alert", hidden: true },
        "This one is no longer reserved for you. You can still save: it is refused only if another reader has it now.")),
      h("section", { class: "card" },
        h("h1", {}, this.objects ? `Mark: ${result.object_label}` : "What do you see?"),
        item.why.length > 0 && h("ul", { class: "why soft" }, item.why.map(({ message }) => h("li", {}, message))),
        this.objects ? this.#markHelp() : h("div", { class: "choices", role: "radiogroup", "aria-label": "What you see" }, this.choices),
        this.state,
        h("div", { class: "choices" }, this.sendButton, this.confirmable && this.rightButton),
        h("div", { class: "row" }, this.undoButton, this.redoButton,
          this.lease && h("button", { onclick: () => this.askSkip() }, "Skip ", h("kbd", {}, "S")),
          h("button", { onclick: () => this.back() }, this.lease ? "Give back" : "Leave it", " ", h("kbd", {}, "Esc"))),
        Reading.last && !this.replaces && h("p", {}, h("button", { class: "quiet", onclick: () => this.again(Reading.last) },
          "Correct the last one ", h("kbd", {}, "C")))),
      this.blind
        ? [h("section", { class: "card" }, h("h2", {}, "Read without the model"),
          h("p", {}, "What the model says of this scan is not shown: a label that does not know it tells how often the model is right.")), this.#facts()]
        : h("details", { class: "says", open: true }, h("summary", {}, "What the model says"), saysBoxes(result, this.model, this.#facts())));
  }

  #markHelp() {
    return [
      h("p", { class: "soft" }, h("small", {}, "One click a nucleus (P), or outlines (O). Draw the marked part (R) unless you mark the whole image.")),
      h("div", { class: "row" },
        this.doubtful.length > 0 && h("button", { onclick: () => this.nextDoubtful() }, "Next doubtful part ", h("kbd", {}, "D")),
        !this.blind && this.result.objects.length > 0 && h("button", { onclick: () => this.#takeObjects() }, "Correct the model’s outlines")),
    ];
  }

  #facts() {
    const { facts, site, rows, columns, pixel_spacing_mm: spacing } = this.item;
    const known = [
      ["Site", site], ["Kind", [facts.modality, facts.body_part, facts.view].filter(Boolean).join(", ")],
      ["Age", facts.age_years === null ? "" : facts.age_years >= 90 ? "90 or more" : String(facts.age_years)],
      ["Size", `${columns} × ${rows} pixels` + (spacing ? `, ${spacing[0]} mm each` : "")],
    ].filter(([, text]) => text);
    return h("section", { class: "card" }, h("h2", {}, "The scan"), h("dl", { class: "facts" }, known.map(([name, text]) => [h("dt", {}, name), h("dd", {}, text)])));
  }

  #keys() {
    const classes = Object.fromEntries(this.classes.slice(0, 9).map((name, i) => [i + 1, [name, () => this.choose(name)]]));
    const tools = this.marks ? Object.fromEntries(Object.entries(TOOLS).map(([tool, [, key, , , text]]) => [key, [text, () => this.marks.use(tool)]])) : {};
    return {
      ...classes,
      Enter: ["Save and next", () => this.send(false)],
      ...(this.confirmable && { m: ["The model is right: save and next", () => this.send(true)] }),
      u: ["Undo", () => this.undo()], "Mod+z": ["Undo", () => this.undo()],
      "Mod+y": ["Redo", () => this.redo()], "Mod+Shift+z": ["Redo", () => this.redo()],
      ...(this.lease && { s: ["Skip, and say why", () => this.askSkip()] }),
      ...(Reading.last && !this.replaces && { c: ["Correct the last one", () => this.again(Reading.last)] }),
      ...tools,
      ...(this.doubtful.length && { d: ["Next doubtful part", () => this.nextDoubtful()] }),
      Escape: ["Give back, to the list", () => this.escape()],
      ...viewerKeys(this.viewer),
    };
  }

  choose(name) {
    if (this.chosen === name) return;
    this.past.push(this.chosen);
    this.future = [];
    this.chosen = name;
    this.#changed();
  }

  undo() {
    if (this.marks) this.marks.undo();
    else if (this.past.length) {
      this.future.push(this.chosen);
      this.chosen = this.past.pop();
      this.#changed();
    }
  }

  redo() {
    if (this.marks) this.marks.redo();
    else if (this.future.length) {
      this.past.push(this.chosen);
      this.chosen = this.future.pop();
      this.#changed();
    }
  }

  nextDoubtful() {
    this.at = ((this.at ?? -1) + 1) % this.doubtful.length;
    this.viewer.look(this.doubtful[this.at]);
  }

  #takeObjects() {
    this.marks.take(this.result.objects.map(({ polygon }) => polygon));
    this.marks.use("erase");
    this.viewer.showOverlay(false);
  }

  #changed() {
    for (const [i, button] of this.choices.entries()) button.setAttribute("aria-checked", this.classes[i] === this.chosen);
    const empty = this.marks ? this.marks.count === 0 : this.chosen === null;
    this.sendButton.disabled = this.busy || empty;
    this.rightButton.disabled = this.busy;
    const { past, future } = this.marks ?? this;
    this.undoButton.disabled = !past.length;
    this.redoButton.disabled = !future.length;
    if (this.marks) {
      for (const [tool, button] of Object.entries(this.toolButtons)) button.setAttribute("aria-pressed", tool === this.marks.tool);
      put(this.state, empty ? "" : `${this.marks.count} marks.`);
    }
    this.#keepDraft(empty);
  }

  /** Keep what is marked over a reload. Thousands of outlines may be more than a browser keeps: they can be saved all the same. */
  #keepDraft(empty) {
    sessionStorage.removeItem(this.#draftKey);
    try {
      if (!empty) sessionStorage.setItem(this.#draftKey, JSON.stringify(this.#content()));
    } catch { /* there is none, rather than an older one */ }
  }

  #content() {
    return this.marks ? { annotation: this.marks.collection() } : { chosen: this.chosen };
  }

  #restore({ annotation, chosen }) {
    if (annotation && this.marks) this.marks.read(annotation);
    if (chosen) this.choose(chosen);
  }

  /** Send the label, and go on. */
  async send(modelWasRight) {
    if (this.busy || (!modelWasRight && this.sendButton.disabled)) return;
    this.busy = true;
    this.root.setAttribute("aria-busy", "true");
    this.#changed();
    const draft = modelWasRight ? null : this.#content();
    const json = {
      item_id: this.item.item_id, image_sha256: this.item.image_sha256, result_id: this.item.result_id,
      model_sha256: this.item.model.sha256, lease_id: this.hold && !this.hold.over ? this.hold.id : null,
      replaces: this.replaces ?? null, source: "page", model_was_right: modelWasRight, ...this.#said(modelWasRight),
    };
    // The same label, sent again after an answer was lost, is the same one; another is not
    const content = JSON.stringify(json);
    if (content !== this.sent) [this.sent, this.key] = [content, fresh()];
    json.seconds = this.seconds ??= Math.min(86400, (performance.now() - this.started) / 1000);
    try {
      const { label_id } = await ask("POST", "/v1/labels", { json, headers: { "idempotency-key": this.key } });
      this.hold?.end();
      sessionStorage.removeItem(this.#draftKey);
      Reading.last = { item: this.item, label_id, draft };
      this.#close();
      note("Saved.", { seconds: 3 });
      await (this.lease ? this.next() : this.list());
    } catch (problem) {
      this.busy = false;
      this.root.removeAttribute("aria-busy");
      this.#changed();
      note(wordsOf(problem), { bad: true });
      if (problem.code === "stale_result") await this.back();
    }
  }

  /** What the label says: a class, or an annotation; a model that was right says it for the reader. */
  #said(modelWasRight) {
    if (modelWasRight) return {};
    return this.marks ? { annotation: this.marks.collection() } : { classes: { [this.chosen]: true } };
  }

  askSkip() {
    const dialog = h("dialog", { "aria-labelledby": "skip-title" });
    const choose = async (reason) => {
      dialog.close();
      try {
        await this.hold.skip(reason);
        sessionStorage.removeItem(this.#draftKey);
        this.#close();
        await this.next();
      } catch (problem) {
        note(wordsOf(problem), { bad: true });
      }
    };
    const reasons = Object.entries(SKIPS);
    dialog.append(h("h1", { id: "skip-title" }, "Skip: why?"),
      h("div", { class: "choices" }, reasons.map(([reason, text], i) => h("button", { class: "choice", onclick: () => choose(reason) }, h("kbd", {}, i + 1), text))),
      h("p", {}, h("button", { class: "quiet", onclick: () => dialog.close() }, "Go on reading ", h("kbd", {}, "Esc"))));
    dialog.addEventListener("keydown", (event) => { if (reasons[event.key - 1]) choose(reasons[event.key - 1][0]); });
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  }

  /** Esc: first what is being drawn, then the tool, then the item. */
  escape() {
    if (this.marks?.drawing || this.marks?.sketch) this.marks.abort();
    else if (this.marks && this.marks.tool !== "move") this.marks.use("move");
    else this.back();
  }

  async back() {
    await this.leave();
    await this.list();
  }

  /** Leave the item: it is given back, and what was marked stays in this window until it is read again. */
  async leave() {
    this.#close();
    await this.hold?.giveBack();
  }

  #close() {
    this.viewer?.close();
    setKeys({});
  }
}

/**
 * Take from this window what another reader left in it: what is marked and not saved is nobody else's to see, as is a label that
 * was sent. `name` is who is signed in now.
 */
export function forgetOthers(name) {
  if (sessionStorage.getItem("reader") === name) return;
  sessionStorage.clear();
  sessionStorage.setItem("reader", name);
  Reading.last = null;
}

/** Keys of the view that are not of one letter. */
export const readingHelp = () => showKeys([["← ↑ → ↓", "Move the image, or the cross with a tool"], ["Space", "Mark at the cross"]]);
