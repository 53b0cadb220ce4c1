// What a reader marks in an image: points, outlines, strokes, the part that is marked. By mouse, by finger, or by keys alone.

const { ol } = window;

/** Tool -> [name, key, OpenLayers' kind of geometry, class in the GeoJSON, what it does]. */
export const TOOLS = {
  move: ["Move", "v", null, null, "Move the image"],
  point: ["Point", "p", "Point", null, "One click a nucleus"],
  outline: ["Outline", "o", "Polygon", null, "Outline a nucleus: click its corners, twice the last one"],
  nucleus: ["Stroke", "n", "LineString", "Foreground", "Draw within one nucleus"],
  background: ["Background", "b", "LineString", "Background", "Draw where there is none"],
  region: ["Part", "r", "Circle", "Region", "The part in which you mark every nucleus: two corners"],
  erase: ["Erase", "e", null, null, "Click a mark to take it away"],
};
const COLOURS = { point: "#ffd84d", outline: "#ffd84d", nucleus: "#ffd84d", background: "#ff7ad9", region: "#ffffff" };
const STEP = 4; // pixels of the screen that an arrow key moves the cross
const NEAR = 8; // pixels of the screen within which the eraser finds a mark

const round = (value) => Math.round(value * 100) / 100;
const pixel = ([x, y]) => [round(x), round(-y)];

const styles = new Map();
function style(feature) {
  const kind = feature.get("kind") ?? "outline";
  if (!styles.has(kind)) {
    const color = COLOURS[kind];
    const stroke = new ol.style.Stroke({ color, width: kind === "region" ? 2 : 2.5, lineDash: kind === "region" ? [10, 6] : undefined });
    const image = new ol.style.Circle({ radius: 5, fill: new ol.style.Fill({ color }), stroke: new ol.style.Stroke({ color: "#000", width: 1.5 }) });
    styles.set(kind, new ol.style.Style({ stroke, image }));
  }
  return styles.get(kind);
}

export class Marks {
  /** Marks over the image of a viewer; `changed` is called after every change, with whether anything is drawn. */
  constructor(viewer, changed) {
    this.viewer = viewer;
    this.changed = changed;
    this.source = new ol.source.Vector({ wrapX: false });
    this.layer = new ol.layer.Vector({ source: this.source, style, zIndex: 5 });
    this.cross = new ol.Feature();
    const arm = (radius, width, color) => new ol.style.Style({
      image: new ol.style.RegularShape({ points: 4, radius, radius2: 0, stroke: new ol.style.Stroke({ color, width }) }) });
    this.crossLayer = new ol.layer.Vector({
      source: new ol.source.Vector({ features: [] }), zIndex: 6, style: [arm(16, 4, "#000"), arm(16, 2, "#fff")] });
    viewer.map.addLayer(this.layer);
    viewer.map.addLayer(this.crossLayer);
    this.past = [];
    this.future = [];
    this.sketch = null;
    this.drawing = false;
    this.tool = "move";
    viewer.target.addEventListener("keydown", (event) => this.#onKey(event), true);
    viewer.target.addEventListener("pointermove", () => { if (!this.sketch) this.#showCross(false); });
    viewer.map.on("singleclick", (event) => { if (this.tool === "erase") this.#erase(event.coordinate); });
  }

  /** Take a tool. */
  use(tool) {
    this.abort();
    if (this.draw) this.viewer.map.removeInteraction(this.draw);
    [this.draw, this.drawing] = [null, false];
    this.tool = tool;
    const [, , type] = TOOLS[tool];
    if (type) {
      this.draw = new ol.interaction.Draw({
        source: this.source,
        type,
        freehand: type === "LineString",
        geometryFunction: type === "Circle" ? ol.interaction.Draw.createBox() : undefined,
        stopClick: true,
        style: new ol.style.Style({
          stroke: new ol.style.Stroke({ color: COLOURS[tool], width: 2.5 }),
          image: new ol.style.Circle({ radius: 4, stroke: new ol.style.Stroke({ color: COLOURS[tool], width: 2 }) }),
        }),
      });
      this.draw.on("drawstart", () => { this.before = this.#state(); this.drawing = true; });
      this.draw.on("drawabort", () => { this.drawing = false; });
      this.draw.on("drawend", ({ feature }) => {
        this.drawing = false;
        feature.set("kind", tool);
        if (type === "LineString") feature.setGeometry(feature.getGeometry().simplify(0.5));
        const before = this.before;
        queueMicrotask(() => this.#added(feature, before));
      });
      this.viewer.map.addInteraction(this.draw);
    }
    this.viewer.target.classList.toggle("drawing", tool !== "move");
    this.#showCross(tool !== "move" && this.viewer.target.matches(":focus-visible"));
    this.changed();
  }

  #added(feature, before) {
    if (!this.source.hasFeature(feature)) this.source.addFeature(feature);
    if (feature.get("kind") === "region") { // one part is marked; a new one takes the old one's place
      for (const other of this.source.getFeatures()) if (other !== feature && other.get("kind") === "region") this.source.removeFeature(other);
    }
    this.#keep(feature.getGeometry());
    this.past.push(before);
    this.future = [];
    this.changed();
  }

  /** Keep a mark within the image: what was drawn beyond its edge lies on the edge. */
  #keep(geometry) {
    const { columns, rows } = this.viewer;
    geometry.applyTransform((flat, out, stride) => {
      for (let i = 0; i < flat.length; i += stride) {
        out[i] = Math.min(columns, Math.max(0, flat[i]));
        out[i + 1] = -Math.min(rows, Math.max(0, -flat[i + 1]));
      }
      return out;
    });
  }

  #erase(coordinate) {
    const reach = NEAR * this.viewer.view.getResolution();
    let [found, nearest] = [null, reach];
    for (const feature of this.source.getFeatures()) {
      const [x, y] = feature.getGeometry().getClosestPoint(coordinate);
      const away = Math.hypot(x - coordinate[0], y - coordinate[1]);
      if (away <= nearest) [found, nearest] = [feature, away];
    }
    if (!found) return;
    this.past.push(this.#state());
    this.future = [];
    this.source.removeFeature(found);
    this.changed();
  }

  /** Take outlines, lists of (x, y), as the reader's own, to be corrected. */
  take(polygons) {
    this.past.push(this.#state());
    this.future = [];
    this.source.addFeatures(polygons.map((ring) => {
      const feature = new ol.Feature(new ol.geom.Polygon([[...ring, ring[0]].map(([x, y]) => [x, -y])]));
      feature.set("kind", "outline");
      return feature;
    }));
    this.changed();
  }

  #state() {
    return this.source.getFeatures().map((feature) => [feature.get("kind"), feature.getGeometry().clone()]);
  }

  #restore(state) {
    this.source.clear(true);
    this.source.addFeatures(state.map(([kind, geometry]) => {
      const feature = new ol.Feature(geometry);
      feature.set("kind", kind);
      return feature;
    }));
    this.changed();
  }

  /** Take back the last corner of what is being drawn, or else the last change. */
  undo() {
    if (this.sketch) this.#uncorner();
    else if (this.drawing) this.draw.removeLastPoint();
    else if (this.past.length) {
      this.future.push(this.#state());
      this.#restore(this.past.pop());
    }
  }

  redo() {
    if (!this.future.length) return;
    this.past.push(this.#state());
    this.#restore(this.future.pop());
  }

  #uncorner() {
    this.sketch.corners.pop();
    if (this.sketch.corners.length) this.sketch.feature.setGeometry(new ol.geom.LineString(this.sketch.corners));
    else this.abort();
  }

  /** Give up what is being drawn. */
  abort() {
    this.draw?.abortDrawing();
    if (this.sketch) this.crossLayer.getSource().removeFeature(this.sketch.feature);
    this.sketch = null;
  }

  get count() {
    return this.source.getFeatures().length;
  }

  /** The marks as a GeoJSON FeatureCollection, positions in pixels of the image (docs/annotation.md). */
  collection() {
    const features = this.source.getFeatures().map((feature) => {
      const kind = feature.get("kind");
      const geometry = feature.getGeometry();
      const deep = (part) => (typeof part[0] === "number" ? pixel(part) : part.map(deep));
      const name = TOOLS[kind][3];
      return {
        type: "Feature",
        geometry: { type: geometry.getType(), coordinates: deep(geometry.getCoordinates()) },
        properties: name ? { classification: { name } } : {},
      };
    });
    return { type: "FeatureCollection", features };
  }

  /** What collection() gave, as marks again. */
  read(collection) {
    const kinds = { Foreground: "nucleus", Background: "background", Region: "region" };
    const deep = (part) => (typeof part[0] === "number" ? [part[0], -part[1]] : part.map(deep));
    this.#restore(collection.features.map(({ geometry, properties }) => {
      const kind = kinds[properties.classification?.name] ?? (geometry.type === "Point" ? "point" : "outline");
      return [kind, new ol.geom[geometry.type](deep(geometry.coordinates))];
    }));
  }

  #showCross(shown) {
    const source = this.crossLayer.getSource();
    source.clear();
    if (!shown) return;
    const center = this.viewer.view.getCenter();
    const { columns, rows } = this.viewer;
    if (!this.cross.getGeometry()) this.cross.setGeometry(new ol.geom.Point([0, 0]));
    this.cross.getGeometry().setCoordinates([Math.min(columns, Math.max(0, center[0])), -Math.min(rows, Math.max(0, -center[1]))]);
    source.addFeature(this.cross);
  }

  /** Arrows move a cross, Space puts a point or a corner there, Enter closes an outline. */
  #onKey(event) {
    if (this.tool === "move" || event.ctrlKey || event.metaKey || event.altKey) return;
    const shown = this.crossLayer.getSource().getFeatures().length > 0;
    const [right, up] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key] ?? [0, 0];
    if (right || up) {
      if (!shown) this.#showCross(true);
      const step = STEP * (event.shiftKey ? 8 : 1) * this.viewer.view.getResolution();
      const [x, y] = this.cross.getGeometry().getCoordinates();
      const { columns, rows } = this.viewer;
      const to = [Math.min(columns, Math.max(0, x + right * step)), Math.max(-rows, Math.min(0, y + up * step))];
      this.cross.getGeometry().setCoordinates(to);
      const [left, bottom, rightmost, top] = this.viewer.view.calculateExtent();
      if (to[0] < left || to[0] > rightmost || to[1] < bottom || to[1] > top) this.viewer.view.setCenter(to);
    } else if (event.key === " " && shown) this.#place();
    else if (event.key === "Enter" && this.sketch) this.#close();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #place() {
    const at = this.cross.getGeometry().getCoordinates().slice();
    if (this.tool === "erase") return this.#erase(at);
    if (this.tool === "point") return this.#put("point", new ol.geom.Point(at));
    this.sketch ??= { tool: this.tool, corners: [], feature: new ol.Feature() };
    this.sketch.corners.push(at);
    this.sketch.feature.setGeometry(new ol.geom.LineString(this.sketch.corners));
    this.sketch.feature.setStyle(new ol.style.Style({ stroke: new ol.style.Stroke({ color: "#fff", width: 2, lineDash: [4, 4] }) }));
    const source = this.crossLayer.getSource();
    if (!source.hasFeature(this.sketch.feature)) source.addFeature(this.sketch.feature);
    if (this.tool === "region" && this.sketch.corners.length === 2) this.#close();
    return undefined;
  }

  #close() {
    const { tool, corners, feature } = this.sketch;
    this.crossLayer.getSource().removeFeature(feature);
    this.sketch = null;
    if (tool === "region" && corners.length === 2) {
      const [[x0, y0], [x1, y1]] = corners;
      this.#put(tool, new ol.geom.Polygon([[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]));
    } else if (TOOLS[tool][2] === "LineString" && corners.length > 1) this.#put(tool, new ol.geom.LineString(corners));
    else if (tool === "outline" && corners.length > 2) this.#put(tool, new ol.geom.Polygon([[...corners, corners[0]]]));
  }

  #put(kind, geometry) {
    const before = this.#state();
    const feature = new ol.Feature(geometry);
    feature.set("kind", kind);
    this.#added(feature, before);
  }
}
