// What each site sends, how much error to expect there, and how often its readers agree with the model.

import { ask, query } from "./api.js";
import { lines } from "./charts.js";
import { choice, h, modelChoice, put, table } from "./dom.js";
import { setKeys } from "./keys.js";
import { percent, say, wordsOf } from "./words.js";

const SPANS = [[7, "7 days"], [30, "30 days"], [90, "90 days"], [366, "a year"]];
const named = (site) => site || "no site";

/** Add the days of a site up; means are weighted by the number of scans, shares by that of labels. */
export function summed(days) {
  const total = { n: 0, accept: 0, review: 0, refuse: 0, labelled: 0, random_labelled: 0, loss: 0, far: 0, agree: 0, random_agree: 0 };
  for (const each of days) {
    for (const name of ["n", "accept", "review", "refuse", "labelled", "random_labelled"]) total[name] += each[name];
    total.loss += each.n * each.mean_predicted_loss;
    total.far += each.n * each.mean_domain_percentile;
    total.agree += each.labelled * (each.agreement ?? 0);
    total.random_agree += each.random_labelled * (each.random_agreement ?? 0);
  }
  return total;
}

/** The view. */
export function sitesView(main, { models }) {
  let model = models[0];
  let span = 30;
  let ended = false;
  setKeys({});

  async function load() {
    try {
      const found = await ask("GET", "/v1/sites" + query({ model: model.name, days: span }));
      if (!ended) draw(found);
    } catch (problem) {
      if (!ended) put(main, h("div", { class: "plain" }, h("h1", {}, "Sites"), h("p", {}, wordsOf(problem))));
    }
  }

  function draw(found) {
    // Losses of two packages are not comparable: the newest package's days only
    const newest = found.days[0]?.model_sha256;
    const current = found.days.filter((each) => each.model_sha256 === newest);
    const names = [...new Set([...current.map(({ site }) => site), ...found.sites])].sort();
    const of = (site) => current.filter((each) => each.site === site).sort((a, b) => a.day.localeCompare(b.day));
    const unit = model.card.task === "segmentation" ? "expected 1 − Dice" : "expected log loss, nats";
    const drawn = names.filter((site) => of(site).length);
    put(main, h("div", { class: "plain" },
      h("div", { class: "row spread top" },
        h("div", {}, h("h1", {}, "Sites"), h("p", { class: "soft" }, "How much error the model expects of itself at each place, day by day.")),
        h("div", { class: "row" },
          modelChoice(models, model, (chosen) => { model = chosen; load(); }),
          choice("Days", SPANS, span, (days) => { span = Number(days); load(); }))),
      current.length === 0 ? h("div", { class: "card" }, h("p", {}, "No scan came in this time.")) : [
        h("section", { class: "card" }, h("h2", {}, `Mean predicted loss a day (${unit})`),
          lines({
            series: drawn.map((site) => ({ name: named(site), points: of(site).map(({ day, mean_predicted_loss }) => [day, mean_predicted_loss]) })),
            label: "Mean predicted loss by day, one line a site; the table below has the means", unit: say }),
          h("p", { class: "legend" }, drawn.map((site, i) => [h("span", { class: `key s${i % 6}` }), h("small", {}, named(site))]))),
        h("section", { class: "card" }, sitesTable(names.map((site) => [site, summed(of(site))]))),
        h("p", { class: "soft" }, h("small", {}, `Of ${model.name} ${current[0].model_version}. `,
          "Labels of scans that were chosen for being doubtful say nothing about how often the model is right at a site; those of the random share do.")),
      ]));
  }

  const sitesTable = (rows) => table("Sites",
    [["Site"], ["Scans", "number"], ["Mean predicted loss", "number"], ["Unlike training, of 100", "number"], ["Within limits", "number"],
      ["For review", "number"], ["No say", "number"], ["Labelled", "number"], ["Model right, of random scans", "number"]],
    rows.map(([site, total]) => [
      named(site), String(total.n), total.n ? say(total.loss / total.n) : "–", total.n ? String(Math.round(total.far / total.n)) : "–",
      String(total.accept), String(total.review), String(total.refuse), String(total.labelled),
      total.random_labelled ? `${percent(total.random_agree / total.random_labelled)} of ${total.random_labelled}` : "–"]));

  load();
  return () => { ended = true; };
}
