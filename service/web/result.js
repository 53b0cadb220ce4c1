// What a model says of an image, in words: verdict and reasons, findings or quantities, and how much error to expect.

import { distribution } from "./charts.js";
import { h } from "./dom.js";
import { VERDICTS, percent, say } from "./words.js";

/** The verdict as a sign and a word, for lists. */
export function verdictChip(verdict) {
  const { sign, title } = VERDICTS[verdict];
  return h("span", { class: `chip ${verdict}` }, h("span", { class: "sign", "aria-hidden": "true" }, sign), title);
}

/** The verdict, and why. */
function verdictBox({ verdict, reasons }) {
  const { sign, title, text } = VERDICTS[verdict];
  return h("section", { class: `verdict ${verdict}`, "aria-label": "Verdict" },
    h("h2", {}, h("span", { class: "sign", "aria-hidden": "true" }, sign), title),
    h("p", {}, text),
    verdict !== "accept" && h("ul", {}, reasons.map(({ message }) => h("li", {}, message))));
}

/** The findings of a classifier; none where the model has no say. */
function findingsBox({ findings, verdict }) {
  if (verdict === "refuse") return null;
  return h("section", { class: "card" }, h("h2", {}, "Findings"), findings.map((finding) => {
    const bar = h("meter", { min: 0, max: 1, value: finding.probability, "aria-label": `Probability of ${finding.label}` });
    return h("div", { class: "finding" },
      h("div", { class: "row spread" },
        h("strong", {}, finding.label),
        h("span", {}, finding.positive ? h("strong", { class: "called" }, "called") : h("span", { class: "soft" }, "not called"), " · ",
          percent(finding.probability))),
      bar, h("small", {}, `Called from ${percent(finding.operating_point)} on.`));
  }));
}

const QUANTITIES = [
  ["count", "Objects", (v) => say(v)],
  ["density_per_mm2", "Density", (v) => `${say(v)} per mm²`],
  ["density_per_megapixel", "Density", (v) => `${say(v)} per megapixel`],
  ["area_fraction", "Share of the area", (v) => percent(v)],
  ["area_um2", "Area, median", (v) => v.median === null ? "–" : `${say(v.median)} µm²`],
  ["area_px", "Area, median", (v) => v.median === null ? "–" : `${say(v.median)} px²`],
  ["eccentricity", "Eccentricity, median", (v) => v.median === null ? "–" : say(v.median)],
  ["nearest_neighbour_um", "Nearest neighbour, median", (v) => v.median === null ? "–" : `${say(v.median)} µm`],
  ["nearest_neighbour_px", "Nearest neighbour, median", (v) => v.median === null ? "–" : `${say(v.median)} px`],
];

/** The quantities of a model that finds objects; what micrometres say is not said in pixels again. */
function quantitiesBox(label, quantities) {
  if (!quantities) return null;
  const micrometres = quantities.area_um2 !== null;
  const known = QUANTITIES.filter(([name]) => quantities[name] !== null && !(micrometres && name.endsWith("_px")));
  return h("section", { class: "card" }, h("h2", {}, `What was found: ${label}`),
    h("dl", { class: "facts" }, known.map(([name, text, write]) => [h("dt", {}, text), h("dd", {}, write(quantities[name]))])));
}

/** How much error to expect, and where that lies among the images the model was checked on. `model` is one of /v1/models. */
function doubtBox(result, model) {
  const segments = (result.task ?? model?.card.task) === "segmentation";
  const rank = Math.round(result.loss_percentile);
  const calibration = model?.card.calibration;
  const what = segments ? "expected 1 − Dice" : "expected log loss, nats";
  const chart = calibration && distribution({
    quantiles: calibration.loss_quantiles, percentile: result.loss_percentile, limit: model.limits.review_loss_percentile, label: "Predicted loss",
  });
  const far = Math.round(result.domain_percentile);
  return h("section", { class: "card" },
    h("h2", {}, "Expected error"),
    h("p", { class: "figure" }, h("strong", {}, say(result.predicted_loss)), " ", h("small", {}, what)),
    h("p", {}, segments ? `In more than a third of it higher than on ${rank} of 100 tiles the model was checked on.`
      : `Higher than on ${rank} of 100 images the model was checked on.`),
    result.predicted_loss_unseen != null && h("p", {}, h("strong", {}, say(result.predicted_loss_unseen)),
      " ", h("small", {}, "if this hospital is none of those it was trained on")),
    chart,
    chart && h("p", { class: "legend" },
      h("small", {}, h("span", { class: "key here" }), "this image"),
      h("small", {}, h("span", { class: "key limit" }), `review from ${Math.round(model.limits.review_loss_percentile)} of 100 on`)),
    h("h3", {}, "Unlike the training images"),
    h("meter", { min: 0, max: 100, value: result.domain_percentile, "aria-label": "Distance from the training images, rank of 100" }),
    h("p", {}, h("small", {}, `${segments ? "More than a third of it further" : "Further"} away than ${far} of 100.`)));
}

/** All that a model says of an image, and what lies over it. `between` goes before for whom the model is made. */
export function saysBoxes(result, model, ...between) {
  const line = (text) => h("p", { class: "soft" }, h("small", {}, text));
  return [
    verdictBox(result),
    result.task === "classification" ? findingsBox(result) : quantitiesBox(result.object_label, result.quantities),
    result.heatmap && result.verdict !== "refuse" && line(`Warm colours: where the evidence for ${result.heatmap.label} lies.`),
    result.doubtful_regions?.length > 0 && line("Dashed: the parts that the model doubts most."),
    doubtBox(result, model), between, usedFor(model),
  ];
}

/** For whom the model is meant: always beside what it says. */
function usedFor(model) {
  if (!model) return null;
  const { population, not_seen: unseen, not_for: never } = model.card.intended_use;
  return h("section", { class: "soft" },
    h("p", {}, h("small", {}, `${model.name} ${model.version}. ${/^not /i.test(never) ? never : `Not for ${never}`}`)),
    h("details", {}, h("summary", {}, h("small", {}, "For whom this model is made")),
      h("p", {}, h("small", {}, population)), h("p", {}, h("small", {}, `Never seen: ${unseen}`)),
      h("p", {}, h("small", {}, h("a", { href: "#models" }, "The model’s card")))));
}
