// An image that can be moved, zoomed and windowed, with what the model says drawn over it. OpenLayers does the drawing.
//
// OpenLayers counts upwards, images count downwards: (x, y) in pixels of the image, from its upper left corner, is (x, -y) there.

import { blobOf } from "./api.js";
import { h, put } from "./dom.js";
import { Picture, warm } from "./pixels.js";
import { readPng } from "./png.js";

const { ol } = window;
const KEYS = { zoom: 1.5, pan: 0.12 };

/** A layer that paints a canvas over the whole image, however large the canvas is. */
function canvasLayer(canvas, extent, projection, smooth) {
  const source = new ol.source.ImageCanvas({
    projection,
    ratio: 1,
    interpolate: true,
    canvasFunction: (seen, resolution, pixelRatio, size) => {
      const out = document.createElement("canvas");
      [out.width, out.height] = size;
      const context = out.getContext("2d");
      const scale = pixelRatio / resolution;
      context.imageSmoothingEnabled = smooth || scale * (extent[2] / canvas.width) < 3; // far in, single pixels are seen
      context.imageSmoothingQuality = "high";
      context.drawImage(canvas, -seen[0] * scale, seen[3] * scale, extent[2] * scale, -extent[1] * scale);
      return out;
    },
  });
  return new ol.layer.Image({ source });
}

const outline = (color, width, dash) => new ol.style.Style({ stroke: new ol.style.Stroke({ color, width, lineDash: dash }) });

export class Viewer {
  /** `label` names the image for those who do not see it. */
  constructor(label) {
    this.target = h("div", { class: "canvas", tabindex: "0", role: "application", "aria-label": label });
    this.readout = h("output", { class: "readout", "aria-live": "off" });
    this.element = h("div", { class: "viewer" }, this.target, this.readout);
    this.map = new ol.Map({
      target: this.target,
      controls: [],
      keyboardEventTarget: this.target,
      interactions: ol.interaction.defaults.defaults({ altShiftDragRotate: false, pinchRotate: false, keyboard: false, shiftDragZoom: false }),
    });
    this.window = null;
    this.inverted = false;
    this.windowing = false;
    this.overlayShown = true;
    this.opacity = 0.55;
    this.overlays = [];
    this.listeners = [];
    this.#windowByDragging();
    this.target.addEventListener("keydown", (event) => this.#onKey(event));
    this.observer = new ResizeObserver(() => this.map.updateSize());
    this.observer.observe(this.target);
  }

  /** Show an image: a PNG, which may have fewer pixels than the source's `columns` and `rows`. */
  async show(blob, { columns, rows }) {
    this.picture = new Picture(await readPng(blob));
    this.columns = columns ?? this.picture.width;
    this.rows = rows ?? this.picture.height;
    this.extent = [0, -this.rows, this.columns, 0];
    this.projection = new ol.proj.Projection({ code: "image", units: "pixels", extent: this.extent });
    const longest = Math.max(this.columns, this.rows);
    this.view = new ol.View({
      projection: this.projection,
      extent: this.extent,
      constrainOnlyCenter: true,
      smoothResolutionConstraint: false,
      maxResolution: longest / 150,
      minResolution: 1 / 24,
      enableRotation: false,
    });
    this.map.setView(this.view);
    this.base = canvasLayer(this.picture.canvas, this.extent, this.projection, false);
    this.overlays = [];
    this.map.setLayers([this.base]);
    this.setWindow(this.picture.full);
    this.fit();
  }

  /** Lay a heatmap over the image: a grey PNG. */
  async heatmap(blob) {
    this.#over(canvasLayer(warm(await readPng(blob)), this.extent, this.projection, true), true);
  }

  /** Draw outlines: lists of (x, y). Lines hide little, so they are hardly faded. */
  outlines(polygons, { color = "#2bff88", width = 2, dash = undefined, fades = true } = {}) {
    const features = polygons.map((ring) => new ol.Feature(new ol.geom.Polygon([ring.map(([x, y]) => [x, -y])])));
    const layer = new ol.layer.Vector({ source: new ol.source.Vector({ features }), style: outline(color, width, dash) });
    if (fades) this.opacity = 0.9;
    this.#over(layer, fades);
  }

  /** Draw what a result says of the image; nothing where the model has no say, but for the parts that it doubts. */
  async says(result) {
    if (result.heatmap && result.verdict !== "refuse") await this.heatmap(blobOf(result.heatmap));
    if (result.objects) this.objects(result);
  }

  /** Draw what a model found, and dashed boxes around the parts that it doubts. */
  objects({ objects, doubtful_regions: doubtful }) {
    this.outlines(objects.map(({ polygon }) => polygon));
    const boxes = doubtful.map(({ x, y, width, height }) => [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]);
    this.outlines(boxes, { color: "#ffb02e", dash: [8, 6], fades: false });
  }

  #over(layer, fades) {
    if (fades) layer.setOpacity(this.opacity);
    layer.setVisible(this.overlayShown);
    layer.set("fades", fades);
    this.overlays.push(layer);
    this.map.addLayer(layer);
    this.#tell();
  }

  setOpacity(share) {
    this.opacity = share;
    for (const layer of this.overlays) if (layer.get("fades")) layer.setOpacity(share);
  }

  showOverlay(shown) {
    this.overlayShown = shown;
    for (const layer of this.overlays) layer.setVisible(shown);
    this.#tell();
  }

  setWindow({ low, high }) {
    const most = this.picture.levels - 1;
    low = Math.max(-most, Math.min(most - 1, low));
    this.window = { low, high: Math.max(low + 1, Math.min(2 * most, high)) };
    cancelAnimationFrame(this.waiting);
    this.waiting = requestAnimationFrame(() => {
      this.picture.paint(this.window, this.inverted);
      this.base.getSource().changed();
    });
    this.#tell();
  }

  invert() {
    this.inverted = !this.inverted;
    this.setWindow(this.window);
  }

  fit() {
    this.map.updateSize();
    this.view.fit(this.extent, { padding: [8, 8, 8, 8], constrainResolution: false });
  }

  zoom(factor) {
    this.view.animate({ zoom: this.view.getZoom() + Math.log2(factor), duration: 120 });
  }

  /** Move to a part of the image, in pixels of it. */
  look({ x, y, width, height }) {
    this.view.fit([x, -y - height, x + width, -y], { padding: [60, 60, 60, 60], duration: 200 });
  }

  /** Call `heard` after every change of window, inversion or overlay. */
  onChange(heard) {
    this.listeners.push(heard);
  }

  #tell() {
    const { low, high } = this.window;
    const percent = (value) => Math.round((100 * value) / (this.picture.levels - 1));
    put(this.readout, `W ${percent(high - low)}%  L ${percent((low + high) / 2)}%${this.inverted ? "  inverted" : ""}`);
    for (const heard of this.listeners) heard(this);
  }

  /** The right mouse button, or any with the window tool: to the right wider, downwards darker, as in reading rooms. */
  #windowByDragging() {
    let from = null;
    this.target.addEventListener("contextmenu", (event) => event.preventDefault());
    this.target.addEventListener("pointerdown", (event) => {
      if (!this.picture || !(event.button === 2 || (this.windowing && event.button === 0))) return;
      from = { x: event.clientX, y: event.clientY, ...this.window };
      this.target.setPointerCapture(event.pointerId);
      event.stopPropagation();
    }, true);
    this.target.addEventListener("pointermove", (event) => {
      if (!from) return;
      const step = this.picture.levels / 500;
      const center = (from.low + from.high) / 2 + (event.clientY - from.y) * step;
      const width = Math.max(1, from.high - from.low + (event.clientX - from.x) * step);
      this.setWindow({ low: center - width / 2, high: center + width / 2 });
      event.stopPropagation();
    }, true);
    for (const name of ["pointerup", "pointercancel"]) this.target.addEventListener(name, () => { from = null; }, true);
  }

  #onKey(event) {
    if (!this.picture || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const [right, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (!right && !down) return;
    event.preventDefault();
    const [width, height] = this.map.getSize();
    const [x, y] = this.view.getCenter();
    const resolution = this.view.getResolution();
    this.view.setCenter([x + right * KEYS.pan * width * resolution, y - down * KEYS.pan * height * resolution]);
  }

  /** Free what the browser holds for it. */
  close() {
    this.observer.disconnect();
    this.map.setTarget(null);
  }
}

/** The keys that every viewer has, for the list of keys and for whoever listens: key -> what it does. */
export function viewerKeys(viewer) {
  return {
    "+": ["Larger", () => viewer.zoom(KEYS.zoom)],
    "-": ["Smaller", () => viewer.zoom(1 / KEYS.zoom)],
    0: ["The whole image", () => viewer.fit()],
    h: ["Show or hide what the model marked", () => viewer.showOverlay(!viewer.overlayShown)],
    w: ["Window by dragging; the right mouse button always does", () => setWindowing(viewer, !viewer.windowing)],
    a: ["Window to the usual values", () => viewer.setWindow(viewer.picture.usual)],
    f: ["Window to all values", () => viewer.setWindow(viewer.picture.full)],
    i: ["Invert", () => viewer.invert()],
  };
}

/** Turn the window tool on or off. */
export function setWindowing(viewer, on) {
  viewer.windowing = on;
  viewer.target.classList.toggle("windowing", on);
  for (const heard of viewer.listeners) heard(viewer);
}
