"use strict";

// A mask at the resolution of the picture: one byte a pixel, 1 where something is to be filled in.  The canvas shows it;
// what is sent are these bytes, so no smoothing of a browser comes between.
const paint = {
  width: 0, height: 0, bits: new Uint8Array(0), before: new Uint8Array(0), undone: [], x: 0, y: 0,
  canvas: null, changed: () => {},

  // Begins with these bytes, or with nothing painted.
  open(canvas, width, height, bits) {
    Object.assign(this, { canvas, width, height, undone: [], x: width >> 1, y: height >> 1 });
    this.bits = bits || new Uint8Array(width * height);
    this.before = this.bits.slice();
    canvas.width = width;
    canvas.height = height;
    if (bits) this.show([0, 0, width, height]);
  },

  // A disc around the middle of a pixel; the places of its rows follow from its radius alone.
  disc(x, y, radius, value) {
    const reach = Math.max(0, radius - 0.5);
    for (let row = Math.max(0, Math.ceil(y - reach)); row <= Math.min(this.height - 1, y + reach); row += 1) {
      const half = Math.sqrt(Math.max(0, reach * reach - (row - y) * (row - y)));
      const first = Math.max(0, Math.ceil(x - half)), last = Math.min(this.width - 1, Math.floor(x + half));
      if (last >= first) this.bits.fill(value, row * this.width + first, row * this.width + last + 1);
    }
    return [x - reach, y - reach, x + reach, y + reach];
  },

  line(from, to, radius, value) {
    const steps = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) / Math.max(1, radius / 4)));
    let box = [Infinity, Infinity, -Infinity, -Infinity];
    for (let i = 0; i <= steps; i += 1) {
      const at = [0, 1].map((axis) => Math.round(from[axis] + (to[axis] - from[axis]) * i / steps));
      const disc = this.disc(at[0], at[1], radius, value);
      box = [Math.min(box[0], disc[0]), Math.min(box[1], disc[1]), Math.max(box[2], disc[2]), Math.max(box[3], disc[3])];
    }
    this.show(box);
    return box;
  },

  clip(box) {
    const left = Math.max(0, Math.floor(box[0])), top = Math.max(0, Math.floor(box[1]));
    return [left, top, Math.min(this.width, Math.ceil(box[2]) + 1), Math.min(this.height, Math.ceil(box[3]) + 1)];
  },

  show(box) {
    const [left, top, right, bottom] = this.clip(box);
    if (right <= left || bottom <= top) return;
    const image = new ImageData(right - left, bottom - top), pixels = new Uint32Array(image.data.buffer);
    for (let row = top, i = 0; row < bottom; row += 1) {
      for (let at = row * this.width + left; at < row * this.width + right; at += 1, i += 1) {
        pixels[i] = this.bits[at] ? 0xffff00ff : 0;
      }
    }
    this.canvas.getContext("2d").putImageData(image, left, top);
  },

  copy(box, source, target) {
    const [left, top, right, bottom] = box;
    for (let row = top; row < bottom; row += 1) {
      const start = row * this.width;
      target.set(source.subarray(start + left, start + right), start + left);
    }
  },

  // Keeps what was there before a change, to undo it.
  keep(box) {
    const [left, top, right, bottom] = this.clip(box);
    if (right <= left || bottom <= top) return;
    const old = new Uint8Array((right - left) * (bottom - top));
    for (let row = top; row < bottom; row += 1) {
      const start = row * this.width;
      old.set(this.before.subarray(start + left, start + right), (row - top) * (right - left));
    }
    this.undone.push([[left, top, right, bottom], old]);
    if (this.undone.length > 50) this.undone.shift();
    this.copy([left, top, right, bottom], this.bits, this.before);
    this.changed();
  },

  undo() {
    const last = this.undone.pop();
    if (!last) return;
    const [[left, top, right, bottom], old] = last;
    for (let row = top; row < bottom; row += 1) {
      const part = old.subarray((row - top) * (right - left), (row - top + 1) * (right - left));
      this.bits.set(part, row * this.width + left);
    }
    this.copy([left, top, right, bottom], this.bits, this.before);
    this.show([left, top, right - 1, bottom - 1]);
    this.changed();
  },

  all(change) {
    for (let i = 0; i < this.bits.length; i += 1) this.bits[i] = change(i);
    this.show([0, 0, this.width, this.height]);
    this.keep([0, 0, this.width, this.height]);
  },

  // Reads a mask as the server sends it, black on white: black is to be filled in.
  async read(blob) {
    const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
    const { width, height } = bitmap, found = new Uint8Array(width * height);
    const page = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    page.drawImage(bitmap, 0, 0);
    const rows = 256;  // at once
    for (let top = 0; top < height; top += rows) {
      const { data } = page.getImageData(0, top, width, Math.min(rows, height - top));
      for (let i = 0, at = top * width; i < data.length; i += 4, at += 1) found[at] = data[i] < 128 ? 1 : 0;
    }
    return found;
  },

  count() {
    let sum = 0;
    for (let i = 0; i < this.bits.length; i += 1) sum += this.bits[i];
    return sum;
  },

  // A bit a pixel, the highest of a byte first.
  packed() {
    const bytes = new Uint8Array(Math.ceil(this.bits.length / 8));
    for (let i = 0; i < this.bits.length; i += 1) if (this.bits[i]) bytes[i >> 3] |= 128 >> (i & 7);
    return bytes;
  },
};
