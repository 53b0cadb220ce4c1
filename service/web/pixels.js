// An image's numbers, painted through a window: values from low to high become black to white.

/** Of a 16-bit image the histogram needs no more places than this. */
const BINS = 1024;

export class Picture {
  /** `read` is what readPng returned. */
  constructor(read) {
    Object.assign(this, read);
    this.canvas = document.createElement("canvas");
    [this.canvas.width, this.canvas.height] = [this.width, this.height];
    this.context = this.canvas.getContext("2d");
    this.image = this.context.createImageData(this.width, this.height);
  }

  /** The window that shows everything. */
  get full() {
    return { low: 0, high: this.levels - 1 };
  }

  /** The window between the 1st and 99th percentile of the values. */
  get usual() {
    const values = this.grey ?? this.rgba;
    const counts = new Uint32Array(BINS);
    const step = this.levels / BINS;
    const every = this.grey ? 1 : 4;
    for (let i = 0; i < values.length; i += every) counts[Math.floor(values[i] / step)]++;
    const total = values.length / every;
    const at = (share) => {
      let sum = 0;
      for (let bin = 0; bin < BINS; bin++) if ((sum += counts[bin]) >= share * total) return bin * step;
      return this.levels - 1;
    };
    const [low, high] = [at(0.01), at(0.99)];
    return high > low ? { low, high } : this.full;
  }

  /** Paint the canvas. */
  paint({ low, high }, inverted) {
    const table = new Uint8ClampedArray(this.levels);
    const scale = 255 / Math.max(1, high - low);
    for (let value = 0; value < this.levels; value++) {
      const shade = (value - low) * scale;
      table[value] = inverted ? 255 - Math.max(0, Math.min(255, shade)) : shade;
    }
    const out = this.image.data;
    if (this.grey) {
      const words = new Uint32Array(out.buffer);
      const shades = Uint32Array.from(table, (shade) => 0xff000000 | (shade << 16) | (shade << 8) | shade);
      for (let i = 0; i < words.length; i++) words[i] = shades[this.grey[i]];
    } else {
      for (let i = 0; i < out.length; i++) out[i] = i % 4 === 3 ? 255 : table[this.rgba[i]];
    }
    this.context.putImageData(this.image, 0, 0);
  }
}

/** Colour a grey heatmap: nothing where there is no evidence, then ever warmer and less transparent. */
export function warm(read) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [read.width, read.height];
  const context = canvas.getContext("2d");
  const image = context.createImageData(read.width, read.height);
  const most = read.levels - 1;
  for (let i = 0; i < read.grey.length; i++) {
    const share = read.grey[i] / most;
    image.data[4 * i] = 255;
    image.data[4 * i + 1] = 205 - 165 * share;
    image.data[4 * i + 2] = 40 * (1 - share);
    image.data[4 * i + 3] = 255 * Math.min(1, share * 1.15);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
