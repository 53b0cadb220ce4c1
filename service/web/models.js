// The models that are served: their cards for reading, and a candidate that is tried beside one.

import { ask } from "./api.js";
import { h, note, put, table } from "./dom.js";
import { setKeys } from "./keys.js";
import { verdictChip } from "./result.js";
import { percent, say, wordsOf } from "./words.js";

/** The view. `models` are those of /v1/models. */
export function modelsView(main, { models, mayCompare }) {
  let ended = false;
  setKeys({});
  const beside = new Map(models.map(({ name }) => [name, h("div", {})]));
  put(main, h("div", { class: "plain" }, h("h1", {}, "Models"),
    models.map((model) => h("article", { class: "card model" }, head(model), beside.get(model.name), ...card(model)))));
  if (mayCompare) {
    ask("GET", "/v1/candidates").then((found) => {
      if (ended) return;
      for (const one of found.models) if (one.candidate && beside.has(one.name)) put(beside.get(one.name), candidate(one));
    }, (problem) => { if (!ended) note(wordsOf(problem), { bad: true }); });
  }
  return () => { ended = true; };
}

const head = (model) => [
  h("div", { class: "row spread" }, h("h2", {}, `${model.name} ${model.version}`),
    h("small", { class: "soft" }, model.default ? "The model where none is named" : "")),
  h("p", {}, model.card.intended_use.statement),
];

const facts = (pairs) => h("dl", { class: "facts" }, pairs.filter(([, text]) => text).map(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]));
const range = (figure) => (figure.low === null ? "–" : `${say(figure.low)} to ${say(figure.high)}`);

const value = (figure) => (figure.value === null ? "–" : say(figure.value));
const held = (figure) => (figure.held_out === "domain" ? "the whole place" : "patients");
const spaced = (metric) => (metric === "auroc" || metric === "aji" ? metric.toUpperCase() : metric.replaceAll("_", " "));
const HEADLINES = ["auroc", "sensitivity", "specificity", "aji", "dice", "panoptic_quality", "true_loss", "predicted_loss", "share_refuse"];

/** The figures that are asked for first, of all patients of a place: a row a place, with intervals. */
function headline({ name, evaluation }) {
  const all = evaluation.filter(({ subgroup }) => subgroup === "all");
  const metrics = HEADLINES.filter((metric) => all.some((figure) => figure.metric === metric));
  const places = [...new Set(all.map((figure) => JSON.stringify([figure.domain, held(figure)])))].map((text) => JSON.parse(text));
  return table(`Main figures of ${name}`,
    [["Where"], ["Held out"], ...metrics.map((metric) => [spaced(metric), "number"])],
    places.map(([domain, part]) => [domain, part, ...metrics.map((metric) => {
      const figure = all.find((one) => one.domain === domain && held(one) === part && one.metric === metric);
      return figure ? [h("div", {}, value(figure)), h("small", { class: "soft" }, range(figure))] : "–";
    })]));
}

function card({ card: it, limits, provider, sha256 }) {
  const { intended_use: use, input, training, calibration } = it;
  const part = (title, open, ...children) => h("details", { open }, h("summary", {}, title), children);
  return [
    part("For whom", true, facts([["Made with", use.population], ["Never seen", use.not_seen], ["Not for", use.not_for]])),
    part("How good it is", true, headline(it),
      h("p", {}, h("small", {}, "Of all images, also those that it refuses: in the answer to one of these, nothing is called."))),
    part(`All ${it.evaluation.length} measured figures`, false, table(`Measured figures of ${it.name}`,
      [["Where"], ["Held out"], ["Of whom"], ["Figure"], ["Value", "number"], ["95% interval", "number"], ["n", "number"]],
      it.evaluation.map((figure) => [
        figure.domain, held(figure), figure.subgroup, spaced(figure.metric), value(figure), range(figure), String(figure.n)]))),
    part("What it takes", false, facts([
      ["Modality", input.modalities.join(", ") || "any"], ["Body part", input.body_parts.join(", ") || "any"],
      ["View", input.views.join(", ") || "any"], ["Age", input.age_years ? `${input.age_years[0]} to ${input.age_years[1]} years` : "any"],
      ["Size", `${input.min_side} pixels a side and more`], ["Colour", input.channels === 3 ? "yes" : "grey"]])),
    part("When it asks for an expert", false, facts([
      ["Expected error", `from ${say(limits.review_loss_percentile)} of 100 on`],
      ["Unlike the training images", `from ${say(limits.review_domain_percentile)} of 100 on`],
      ["No say", `beyond a distance of ${say(limits.refuse_domain_distance)}`],
      ["Calibrated on", `${calibration.n} ${it.task === "segmentation" ? "tiles" : "images"}. ${calibration.method}`]])),
    part("Where it comes from", false,
      table(`Data of ${it.name}`, [["Data"], ["Images", "number"], ["Patients", "number"], ["Licence"], ["Credit"]],
        training.sources.map((source) => [source.domain, String(source.images), String(source.patients), source.licence, source.credit])),
      facts([["Released", it.created], ["Digest", h("code", {}, sha256)], ["Runs on", provider]])),
  ];
}

function candidate({ current, candidate: tried, shadow }) {
  const { total, by_site: sites, verdicts, errors } = shadow;
  const share = (part, whole) => (whole ? percent(part / whole) : "–");
  const loss = (value) => (value === null ? "–" : say(value));
  const row = (name, it) => [name, String(it.compared), share(it.same_findings, it.compared), share(it.same_verdict, it.compared),
    loss(it.current_mean_predicted_loss), loss(it.candidate_mean_predicted_loss)];
  const changed = verdicts.filter((it) => it.verdict !== it.candidate_verdict && it.scans > 0);
  return h("section", { class: "candidate", "aria-label": "Candidate" },
    h("h3", {}, `Candidate ${tried.version} beside ${current.version}`),
    h("p", {}, "It predicts what the current model predicts; its answers are compared, and never given."),
    total.compared === 0 ? h("p", { class: "soft" }, "No scan has been compared yet.") : [
      table("Current model and candidate, on the same scans",
        [["Site"], ["Scans", "number"], ["Same findings", "number"], ["Same verdict", "number"], ["Predicted loss now", "number"], ["Candidate", "number"]],
        [row(h("strong", {}, "All"), total), ...sites.map((it) => row(it.site || "no site", it))]),
      changed.length > 0 && h("p", {}, "Verdicts that would change: ", changed.map((it, i) => [
        i ? "; " : "", `${it.scans} from `, verdictChip(it.verdict), " to ", verdictChip(it.candidate_verdict)])),
      h("p", { class: "soft" }, h("small", {}, "The losses are each model’s own estimate of itself. ",
        errors ? errorsText(errors) : "No label compares them yet.")),
    ],
    h("p", {}, h("small", {}, "To make it the current one: ", h("code", {}, "overread promote"), ".")));
}

function errorsText({ images, patients, current_errors: now, candidate_errors: then, low, high }) {
  const interval = low === null ? "" : ` (difference ${percent(low)} to ${percent(high)}, 95% interval)`;
  return `On ${images} labelled scans of ${patients} patients, most of them chosen for being doubtful: wrong now ${now}, candidate ${then}${interval}.`;
}
