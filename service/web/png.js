// PNG to numbers. Browsers read 16 bits a pixel as 8, which is too few for a window, so those are read here.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];

/**
 * Read a PNG.
 *
 * Returns {width, height, levels, grey, rgba}: `grey` holds a number from 0 to levels - 1 a pixel and is null of a colour image,
 * whose `rgba` holds four bytes a pixel.
 */
export async function readPng(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  if (SIGNATURE.some((byte, i) => bytes[i] !== byte)) throw new Error("The image is no PNG.");
  const head = new DataView(bytes.buffer, bytes.byteOffset + 16, 13);
  const [width, height] = [head.getUint32(0), head.getUint32(4)];
  // 16 bits, grey, not interlaced: what the service writes of radiographs
  if (head.getUint8(8) === 16 && head.getUint8(9) === 0 && head.getUint8(12) === 0) {
    return { width, height, levels: 65536, grey: await sixteen(bytes, width, height), rgba: null };
  }
  return decoded(blob, head.getUint8(9) === 0);
}

async function decoded(blob, isGrey) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  if (!isGrey) return { width, height, levels: 256, grey: null, rgba };
  const grey = new Uint8Array(width * height);
  for (let i = 0; i < grey.length; i++) grey[i] = rgba[4 * i];
  return { width, height, levels: 256, grey, rgba: null };
}

async function sixteen(bytes, width, height) {
  const parts = [];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 8; at + 8 <= bytes.length;) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (kind === "IDAT") parts.push(bytes.subarray(at + 8, at + 8 + length));
    at += 12 + length;
  }
  const inflated = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = new Uint8Array(await new Response(inflated).arrayBuffer());
  const stride = 2 * width;
  if (raw.length !== height * (stride + 1)) throw new Error("The image is cut off.");
  const grey = new Uint16Array(width * height);
  let above = new Uint8Array(stride);
  for (let y = 0; y < height; y++) {
    const start = y * (stride + 1);
    const line = raw.subarray(start + 1, start + 1 + stride);
    unfilter(raw[start], line, above);
    for (let x = 0; x < width; x++) grey[y * width + x] = (line[2 * x] << 8) | line[2 * x + 1];
    above = line;
  }
  return grey;
}

/** Undo a line's filter in place (PNG, section 9); the pixel to the left begins two bytes before. */
function unfilter(filter, line, above) {
  for (let i = 0; i < line.length; i++) {
    const left = i < 2 ? 0 : line[i - 2];
    const corner = i < 2 ? 0 : above[i - 2];
    if (filter === 1) line[i] += left;
    else if (filter === 2) line[i] += above[i];
    else if (filter === 3) line[i] += (left + above[i]) >> 1;
    else if (filter === 4) line[i] += paeth(left, above[i], corner);
  }
}

function paeth(left, above, corner) {
  const guess = left + above - corner;
  const [toLeft, toAbove, toCorner] = [Math.abs(guess - left), Math.abs(guess - above), Math.abs(guess - corner)];
  if (toLeft <= toAbove && toLeft <= toCorner) return left;
  return toAbove <= toCorner ? above : corner;
}
