// Small charts, drawn as SVG. Each has its numbers in words or in a table beside it.

import { s } from "./dom.js";

/** Linear interpolation over knots (x, y); constant beyond the ends. */
export function through(knots, x) {
  if (x <= knots[0][0]) return knots[0][1];
  for (let i = 1; i < knots.length; i++) {
    const [[x0, y0], [x1, y1]] = [knots[i - 1], knots[i]];
    if (x <= x1) return y0 + ((x - x0) / (x1 - x0)) * (y1 - y0);
  }
  return knots[knots.length - 1][1];
}

/**
 * How a number lies in the calibration set: bars of equal width over the values from the lowest to the highest.
 *
 * `quantiles` are the set’s 101 quantiles (0%, 1%, ... 100%), `value` this image’s number, `percentile` its rank, and `limit` the
 * percentile from which on an image is for review. The marker stands at the rank, so that it lies right among values that are equal.
 */
export function distribution({ quantiles, value, percentile, limit, label, unit }) {
  const [W, H, B, bins] = [320, 76, 16, 32];
  const [least, most] = [quantiles[0], quantiles[100]];
  const span = most - least || 1;
  const counts = new Array(bins).fill(0);
  for (let i = 0; i < 1000; i++) { // the set, as its quantiles tell it
    const at = (i + 0.5) / 10;
    const q = quantiles[Math.floor(at)] + (at % 1) * (quantiles[Math.ceil(at)] - quantiles[Math.floor(at)]);
    counts[Math.min(bins - 1, Math.floor(((q - least) / span) * bins))]++;
  }
  const highest = Math.max(...counts);
  const x = (v) => ((Math.min(most, Math.max(least, v)) - least) / span) * W;
  const limitAt = limit === undefined ? null : x(quantiles[Math.round(Math.min(100, limit))]);
  const bars = counts.map((count, bin) => {
    const tall = count && Math.max(1.5, (count / highest) * (H - B - 10));
    const over = limitAt !== null && ((bin + 0.5) / bins) * W >= limitAt;
    return s("rect", { x: (bin * W) / bins + 0.5, width: W / bins - 1, y: H - B - tall, height: tall, class: over ? "bin over" : "bin" });
  });
  const here = x(value);
  return s("svg", { viewBox: `0 0 ${W} ${H}`, class: "chart", role: "img",
    "aria-label": `${label}: ${Math.round(percentile)} of 100 images of the calibration set have a lower one.` },
    bars,
    s("line", { x1: 0, x2: W, y1: H - B, y2: H - B, class: "axis" }),
    limitAt !== null && s("line", { x1: limitAt, x2: limitAt, y1: 8, y2: H - B, class: "limit" }),
    s("line", { x1: here, x2: here, y1: 4, y2: H - B, class: "here" }),
    s("path", { d: `M${here - 5} 0h10l-5 8z`, class: "here-head" }),
    s("text", { x: 0, y: H - 3, class: "tick" }, `${unit(least)}`),
    s("text", { x: W, y: H - 3, class: "tick end" }, `${unit(most)}`));
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
  const ticks = [0, 0.25, 0.5, 0.75].map((share) => share * top);
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
