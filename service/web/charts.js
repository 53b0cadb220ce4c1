// Small charts, drawn as SVG. Each has its numbers in words or in a table beside it.

import { s } from "./dom.js";

/**
 * How an image lies in the calibration set: bars of equal width over the set's scores, and a marker at the image's rank.
 *
 * `quantiles` are the set's 101 quantiles (0%, 1%, ... 100%) of a score that grows with the expected error, `percentile` the image's
 * rank, `limit` the percentile from which on an image is for review. The outermost hundredths are drawn in the outermost bars.
 */
export function distribution({ quantiles, percentile, limit, label }) {
  const [W, H, B, bins] = [320, 84, 18, 40];
  const at = (rank) => {
    const below = Math.floor(Math.min(100, rank));
    return quantiles[below] + (rank - below) * (quantiles[Math.min(100, below + 1)] - quantiles[below]);
  };
  const [least, most] = [quantiles[1], quantiles[99]];
  const span = most - least || 1;
  const place = (score) => Math.min(1, Math.max(0, (score - least) / span));
  const counts = new Array(bins).fill(0);
  for (let i = 0; i < 2000; i++) counts[Math.min(bins - 1, Math.floor(place(at((i + 0.5) / 20)) * bins))]++;
  const highest = Math.max(...counts);
  const limitAt = place(at(limit)) * W;
  const here = place(at(percentile)) * W;
  return s("svg", { viewBox: `0 0 ${W} ${H}`, class: "chart", role: "img",
    "aria-label": `${label}: ${Math.round(percentile)} of 100 images of the calibration set have a lower one.` },
    counts.map((count, bin) => {
      const tall = (count / highest) * (H - B - 12);
      const over = ((bin + 0.5) / bins) * W >= limitAt;
      return s("rect", { x: (bin * W) / bins + 0.5, width: W / bins - 1, y: H - B - tall, height: tall, class: over ? "bin over" : "bin" });
    }),
    s("line", { x1: 0, x2: W, y1: H - B, y2: H - B, class: "axis" }),
    s("line", { x1: limitAt, x2: limitAt, y1: 8, y2: H - B, class: "limit" }),
    s("line", { x1: here, x2: here, y1: 4, y2: H - B, class: "here" }),
    s("path", { d: `M${here - 5} 0h10l-5 8z`, class: "here-head" }),
    s("text", { x: 0, y: H - 4, class: "tick" }, "less error"),
    s("text", { x: W, y: H - 4, class: "tick end" }, "more error"));
}

/** Round steps from 0 up to a number: 4 to 8 of them. */
function steps(top) {
  const power = 10 ** Math.floor(Math.log10(top / 4));
  const step = [1, 2, 5, 10].map((n) => n * power).find((size) => top / size <= 7);
  return Array.from({ length: Math.floor(top / step) + 1 }, (_, i) => i * step);
}

/** Lines over days: `series` is [{name, points: [[date text, value]]}]; the same order gives the same colours as in `legend`. */
export function lines({ series, label, unit }) {
  const [W, H, L, R, T, B] = [640, 220, 46, 12, 10, 24];
  const points = series.flatMap((one) => one.points);
  const times = points.map(([at]) => Date.parse(at));
  const [first, last] = [Math.min(...times), Math.max(...times)];
  const top = Math.max(...points.map(([, value]) => value), 1e-9) * 1.1;
  const x = (at) => L + (last === first ? 0.5 : (Date.parse(at) - first) / (last - first)) * (W - L - R);
  const y = (value) => H - B - (value / top) * (H - T - B);
  const ticks = steps(top);
  return s("svg", { viewBox: `0 0 ${W} ${H}`, class: "chart tall", role: "img", "aria-label": label },
    ticks.map((value) => [
      s("line", { x1: L, x2: W - R, y1: y(value), y2: y(value), class: "grid" }),
      s("text", { x: L - 6, y: y(value) + 4, class: "tick end" }, unit(value))]),
    s("text", { x: L, y: H - 6, class: "tick" }, new Date(first).toLocaleDateString()),
    last !== first && s("text", { x: W - R, y: H - 6, class: "tick end" }, new Date(last).toLocaleDateString()),
    series.map((one, i) => [
      s("polyline", { points: one.points.map(([at, value]) => `${x(at)},${y(value)}`).join(" "), class: `series s${i % 6}` }),
      one.points.map(([at, value]) => s("circle", { cx: x(at), cy: y(value), r: 3, class: `dot s${i % 6}` },
        s("title", {}, `${one.name}, ${new Date(at).toLocaleDateString()}: ${unit(value)}`)))]));
}
