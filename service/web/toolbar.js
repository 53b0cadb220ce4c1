// The bar above an image: what the viewer can do, for the mouse, for fingers, and by Tab.

import { h } from "./dom.js";
import { setWindowing } from "./viewer.js";

/** Make the bar of a viewer that shows an image. `extra` are elements that come first. */
export function toolbar(viewer, ...extra) {
  const button = (text, label, run) => h("button", { type: "button", title: label, "aria-label": label, onclick: run }, text);
  const windowing = button("Window", "Window by dragging (W); the right mouse button always does", () => setWindowing(viewer, !viewer.windowing));
  const inverted = button("Invert", "Invert (I)", () => viewer.invert());
  const overlay = h("button", { type: "button", onclick: () => viewer.showOverlay(!viewer.overlayShown) }, "Overlay");
  overlay.title = "Show or hide what the model marked (H)";
  const most = viewer.picture.levels - 1;
  const range = (label, read, write) => {
    const input = h("input", { type: "range", min: 0, max: 100, step: 1, "aria-label": label });
    input.addEventListener("input", () => write(Number(input.value) / 100));
    return { input, read };
  };
  const center = () => (viewer.window.low + viewer.window.high) / 2;
  const width = () => viewer.window.high - viewer.window.low;
  const set = (middle, wide) => viewer.setWindow({ low: middle - wide / 2, high: middle + wide / 2 });
  const sliders = {
    Width: range("Window width: less is more contrast", () => width() / most, (share) => set(center(), Math.max(0.01, share) * most)),
    Level: range("Window level: less is brighter", () => center() / most, (share) => set(share * most, width())),
  };
  const opacity = range("Opacity of the model’s marks", () => viewer.opacity, (share) => viewer.setOpacity(share));
  const marks = h("span", { class: "group" }, overlay, h("span", { class: "slider" }, opacity.input));
  const update = () => {
    for (const { input, read } of [...Object.values(sliders), opacity]) input.value = Math.round(100 * Math.min(1, Math.max(0, read())));
    windowing.setAttribute("aria-pressed", viewer.windowing);
    inverted.setAttribute("aria-pressed", viewer.inverted);
    overlay.setAttribute("aria-pressed", viewer.overlayShown);
    marks.hidden = viewer.overlays.length === 0;
  };
  viewer.onChange(update);
  const element = h("div", { class: "tools", role: "toolbar", "aria-label": "Image" }, extra, marks,
    h("span", { class: "group" },
      button("+", "Larger (+)", () => viewer.zoom(1.5)), button("−", "Smaller (-)", () => viewer.zoom(1 / 1.5)),
      button("Fit", "The whole image (0)", () => viewer.fit())),
    h("span", { class: "group" }, windowing, inverted,
      button("Auto", "Window to the usual values (A)", () => viewer.setWindow(viewer.picture.usual)),
      button("Full", "Window to all values (F)", () => viewer.setWindow(viewer.picture.full))),
    h("span", { class: "group wide" },
      Object.entries(sliders).map(([text, { input }]) => h("label", { class: "slider" }, h("small", {}, text), input))));
  update();
  return element;
}
