// Points in the plane on a canvas. A frame writes them straight into its pixels: 100,000 take a few milliseconds.

const CELLS = 256; // of the lattice by which the point under the pointer is found, a side
const FADED = 0.22; // of its colour is left to a point outside a selection

export const packed = (colour) => {
  const number = parseInt(colour.slice(1), 16);
  return ((255 << 24) | ((number & 255) << 16) | (number & 0xff00) | (number >> 16)) >>> 0;
};

function faded(colour, paper) {
  const mixed = (shift) => Math.round(((colour >> shift) & 255) * FADED + ((paper >> shift) & 255) * (1 - FADED)) << shift;
  return (mixed(0) | mixed(8) | mixed(16) | (255 << 24)) >>> 0;
}

export class Plane {
  // at: x and y of each point in 0..1, in the order in which they are drawn. moved(): is told after every pan and zoom.
  constructor(canvas, at, moved) {
    Object.assign(this, { canvas, at, moved, count: at.length / 2, scale: 1, left: 0, top: 0, side: 0, width: 0, height: 0, line: [], chosen: null });
    this.colours = new Uint32Array(this.count);
    this.pen = canvas.getContext("2d");
    this.lattice = new Map();
    for (let point = 0; point < this.count; point++) {
      const key = Math.min(CELLS - 1, Math.floor(at[2 * point] * CELLS)) * CELLS + Math.min(CELLS - 1, Math.floor(at[2 * point + 1] * CELLS));
      if (!this.lattice.has(key)) this.lattice.set(key, []);
      this.lattice.get(key).push(point);
    }
  }

  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.draw(); });
  }

  // On which square pixels a point of this size falls: for each row of them the first and how many.
  static disc(size) {
    const rows = [], middle = (size - 1) / 2;
    for (let y = 0; y < size; y++) {
      const half = size < 3 ? middle : Math.sqrt(Math.max(0, (size / 2) ** 2 - (y - middle) ** 2));
      const first = Math.ceil(middle - half - 0.01), last = Math.floor(middle + half + 0.01);
      rows.push([first, last - first + 1]);
    }
    return rows;
  }

  draw() {
    const { canvas, at, count, colours, chosen } = this;
    const ratio = devicePixelRatio || 1, width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (!width || !height) return;
    if (this.frame?.width !== width || this.frame.height !== height) {
      canvas.width = width;
      canvas.height = height;
      this.frame = new ImageData(width, height);
      this.pixels = new Uint32Array(this.frame.data.buffer);
    }
    const pixels = this.pixels, paper = this.paper ?? 0;
    pixels.fill(0);
    const size = Math.max(1, Math.min(24, Math.round(ratio * (count > 30000 ? 1.5 : count > 5000 ? 2.6 : 4.5) * Math.min(3.5, Math.sqrt(this.scale)))));
    const rows = Plane.disc(size), spread = this.side * this.scale * ratio, dx = this.left * ratio - size / 2, dy = this.top * ratio - size / 2;
    const paint = (point, colour) => {
      const x = Math.round(at[2 * point] * spread + dx), y = Math.round(at[2 * point + 1] * spread + dy);
      if (x < 0 || y < 0 || x + size >= width || y + size >= height) return;
      for (let down = 0, start = y * width + x; down < size; down++, start += width) {
        const [first, many] = rows[down];
        for (let place = start + first, end = place + many; place < end; place++) pixels[place] = colour;
      }
    };
    if (chosen) { // what is selected lies on top of the rest
      for (let point = 0; point < count; point++) if (!chosen[point]) paint(point, faded(colours[point], paper));
      for (let point = 0; point < count; point++) if (chosen[point]) paint(point, colours[point]);
    } else for (let point = 0; point < count; point++) paint(point, colours[point]);
    this.pen.putImageData(this.frame, 0, 0);
    if (this.line.length > 1) this.outline(ratio);
  }

  outline(ratio) {
    const pen = this.pen;
    pen.beginPath();
    this.line.forEach(([u, v], number) => {
      const [x, y] = this.place(u, v);
      if (number) pen.lineTo(x * ratio, y * ratio);
      else pen.moveTo(x * ratio, y * ratio);
    });
    pen.closePath();
    pen.fillStyle = this.ink;
    pen.globalAlpha = 0.08;
    pen.fill();
    pen.globalAlpha = 1;
    pen.strokeStyle = this.ink;
    pen.lineWidth = 1.5 * ratio;
    pen.stroke();
  }

  place(u, v) { return [u * this.side * this.scale + this.left, v * this.side * this.scale + this.top]; }

  point(x, y) { return [(x - this.left) / (this.side * this.scale), (y - this.top) / (this.side * this.scale)]; }

  // The whole map, or what was in the middle of the window, in a window of another size.
  fit(keep) {
    const middle = keep && this.side ? this.middle() : [0.5, 0.5];
    if (!keep) this.scale = 1;
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    this.side = Math.max(50, Math.min(this.width, this.height) - 24);
    this.centre(...middle, this.scale);
  }

  middle() { return this.point(this.width / 2, this.height / 2); }

  centre(u, v, scale) {
    this.scale = Math.max(0.8, Math.min(400, scale));
    this.left = this.width / 2 - u * this.side * this.scale;
    this.top = this.height / 2 - v * this.side * this.scale;
    this.later();
    this.moved();
  }

  pan(x, y) {
    this.left += x;
    this.top += y;
    this.later();
    this.moved();
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const next = Math.max(0.8, Math.min(400, this.scale * factor));
    this.left = x - (x - this.left) * (next / this.scale);
    this.top = y - (y - this.top) * (next / this.scale);
    this.scale = next;
    this.later();
    this.moved();
  }

  // The point next to a place of the canvas, at most `pixels` away; -1 where there is none.
  near(x, y, pixels = 10) {
    const [u, v] = this.point(x, y), reach = pixels / (this.side * this.scale);
    let best = -1, distance = reach * reach;
    const steps = Math.min(CELLS, Math.ceil(reach * CELLS));
    for (let a = Math.floor(u * CELLS) - steps; a <= Math.floor(u * CELLS) + steps; a++) {
      for (let b = Math.floor(v * CELLS) - steps; b <= Math.floor(v * CELLS) + steps; b++) {
        if (a < 0 || b < 0 || a >= CELLS || b >= CELLS) continue;
        for (const point of this.lattice.get(a * CELLS + b) ?? []) {
          const away = (this.at[2 * point] - u) ** 2 + (this.at[2 * point + 1] - v) ** 2;
          if (away < distance) { distance = away; best = point; }
        }
      }
    }
    return best;
  }

  // The points inside a line that is drawn around them.
  inside(polygon) {
    const found = [];
    for (let point = 0; point < this.count; point++) {
      const u = this.at[2 * point], v = this.at[2 * point + 1];
      let within = false;
      for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
        const [ui, vi] = polygon[i], [uj, vj] = polygon[j];
        if ((vi > v) !== (vj > v) && u < ((uj - ui) * (v - vi)) / (vj - vi) + ui) within = !within;
      }
      if (within) found.push(point);
    }
    return found;
  }
}
