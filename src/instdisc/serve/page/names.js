// Names of regions over the map, where there is room.
export const naming = (plane) => ({
  regions: [],
  draw(pen, ratio) {
    const taken = [], high = 11 * ratio;
    Object.assign(pen, { font: `600 ${13 * ratio}px system-ui, sans-serif`, textAlign: "center", textBaseline: "middle" });
    for (const { name, x, y } of this.regions) {
      const [at, top] = plane.place(x, y).map((one) => one * ratio), wide = pen.measureText(name).width / 2 + 8 * ratio, width = pen.canvas.width;
      if (at < 0 || at > width) continue;
      const left = Math.max(wide, Math.min(width - wide, at));
      if (taken.some(([a, b, other]) => Math.abs(a - left) < wide + other && Math.abs(b - top) < 2 * high)) continue;
      taken.push([left, top, wide]);
      pen.fillStyle = "rgb(0 0 0 / .72)";
      pen.fillRect(left - wide, top - high, 2 * wide, 2 * high);
      pen.fillStyle = "#fff";
      pen.fillText(name, left, top);
    }
  },
});
