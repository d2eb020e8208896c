// All pictures as points. A frame writes them straight into the pixels of a canvas: 100,000 take a few milliseconds.
import { ask, cell, h, image, link, say, walkable, words } from "./dom.js";

const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#44aa99", "#999933", "#aa4499", "#661100", "#6699cc"];
const CELLS = 256; // of the lattice by which the point under the pointer is found, a side

const packed = (colour) => {
  const number = parseInt(colour.slice(1), 16);
  return (255 << 24) | ((number & 255) << 16) | (number & 0xff00) | (number >> 16);
};

export async function map(parameters, keep, about) {
  for (;;) {
    const state = await ask("api/map");
    if (state.state === "ready") break;
    if (state.state !== "computing") return [h("h1", {}, "The map"), offer(state)];
    return [h("h1", {}, "The map"), await waiting(keep)];
  }
  return view(parameters, keep, about);
}

function offer(state) {
  const begin = async () => {
    try { await ask("api/map", { method: "POST" }); dispatchEvent(new Event("hashchange")); } catch (error) { say(error.message, true); }
  };
  return h("div", {}, state.error ? h("p", {}, state.error) : null,
    h("p", { class: "quiet" }, "Pictures that are alike will stand together. It is computed once, about a minute for 10,000 pictures, and kept."),
    h("button", { type: "button", class: "main", onclick: begin }, "Compute the map"));
}

async function waiting(keep) {
  const bar = h("progress", { max: "1", value: "0", "aria-label": "Computing the map" }), left = h("p", { class: "quiet", role: "status" }, "Computing the map …");
  let over = false;
  const timer = setInterval(async () => {
    try {
      const state = await ask("api/map");
      if (over) return;
      bar.value = state.progress;
      if (state.seconds_left) left.textContent = `Computing the map, about ${Math.ceil(state.seconds_left)} s left. Other views work meanwhile.`;
      if (state.state !== "computing") { over = true; dispatchEvent(new Event("hashchange")); }
    } catch { /* the next one may be answered */ }
  }, 700);
  keep(() => { over = true; clearInterval(timer); });
  return h("div", {}, bar, left);
}

async function view(parameters, keep, about) {
  const content = await (await fetch("api/map/points")).arrayBuffer();
  const count = content.byteLength / 12;
  const rows = new Int32Array(content, 0, count), at = new Float32Array(content, 4 * count, 2 * count); // in 0..1
  const lattice = new Map();
  const bucket = (x, y) => Math.min(CELLS - 1, Math.floor(x * CELLS)) * CELLS + Math.min(CELLS - 1, Math.floor(y * CELLS));
  for (let point = 0; point < count; point++) {
    const key = bucket(at[2 * point], at[2 * point + 1]);
    if (!lattice.has(key)) lattice.set(key, []);
    lattice.get(key).push(point);
  }
  const ink = getComputedStyle(document.documentElement).getPropertyValue("--accent").trim();
  let colours = new Uint32Array(count).fill(packed(ink)), names = [], chosen = new Set();
  const canvas = h("canvas", { class: "map", tabIndex: 0, role: "application", "aria-label": `Map of ${count} pictures: arrows move, plus and minus zoom, drag with Shift selects` });
  const card = h("div", { class: "card", hidden: true });
  const legend = h("div", { class: "classes" }), picked = h("section", { "aria-label": "Selected" });
  const pen = canvas.getContext("2d");
  let scale = 1, left = 0, top = 0, side = 1, waitingFrame = false, line = [];

  const place = (x, y) => [(x * side * scale + left), (y * side * scale + top)];
  const draw = () => {
    waitingFrame = false;
    const ratio = devicePixelRatio || 1, width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const frame = new ImageData(width, height), pixels = new Uint32Array(frame.data.buffer);
    const size = Math.max(1, Math.round(ratio * (count > 30000 ? 1.2 : count > 5000 ? 2.4 : 4) * Math.min(3, Math.sqrt(scale)))), mark = packed("#ff2d2d");
    for (let point = 0; point < count; point++) {
      const x = Math.round((at[2 * point] * side * scale + left) * ratio), y = Math.round((at[2 * point + 1] * side * scale + top) * ratio);
      if (x < 0 || y < 0 || x + size >= width || y + size >= height) continue;
      const colour = chosen.size && chosen.has(point) ? mark : colours[point];
      for (let down = 0; down < size; down++) pixels.fill(colour, (y + down) * width + x, (y + down) * width + x + size);
    }
    pen.putImageData(frame, 0, 0);
    if (line.length > 1) {
      pen.strokeStyle = ink;
      pen.lineWidth = 2 * ratio;
      pen.beginPath();
      line.forEach(([x, y], number) => (number ? pen.lineTo(x * ratio, y * ratio) : pen.moveTo(x * ratio, y * ratio)));
      pen.stroke();
    }
  };
  const later = () => { if (!waitingFrame) { waitingFrame = true; requestAnimationFrame(draw); } };
  const fit = () => {
    side = Math.max(50, Math.min(canvas.clientWidth, canvas.clientHeight) - 24);
    scale = 1;
    left = (canvas.clientWidth - side) / 2;
    top = (canvas.clientHeight - side) / 2;
    later();
  };
  const zoom = (factor, x, y) => {
    const next = Math.max(0.8, Math.min(400, scale * factor));
    left = x - (x - left) * (next / scale);
    top = y - (y - top) * (next / scale);
    scale = next;
    later();
  };
  const near = (x, y) => {
    const u = (x - left) / (side * scale), v = (y - top) / (side * scale), reach = 10 / (side * scale);
    let best = -1, distance = reach * reach;
    const steps = Math.min(CELLS, Math.ceil(reach * CELLS));
    for (let i = -steps; i <= steps; i++) {
      for (let j = -steps; j <= steps; j++) {
        const a = Math.floor(u * CELLS) + i, b = Math.floor(v * CELLS) + j;
        if (a < 0 || b < 0 || a >= CELLS || b >= CELLS) continue;
        for (const point of lattice.get(a * CELLS + b) ?? []) {
          const away = (at[2 * point] - u) ** 2 + (at[2 * point + 1] - v) ** 2;
          if (away < distance) { distance = away; best = point; }
        }
      }
    }
    return best;
  };

  let shown = -1;
  const hover = async (x, y) => {
    const point = near(x, y);
    if (point === shown) return;
    shown = point;
    card.hidden = point < 0;
    canvas.classList.toggle("over", point >= 0);
    if (point < 0) return;
    const [px, py] = place(at[2 * point], at[2 * point + 1]);
    card.style.left = `${Math.min(canvas.clientWidth - 150, px + 12)}px`;
    card.style.top = `${Math.max(0, Math.min(canvas.clientHeight - 170, py + 12))}px`;
    card.replaceChildren(image(rows[point]));
    try {
      const one = await ask(`api/pictures/${rows[point]}`);
      if (shown === point) card.append(h("span", {}, words(one)));
    } catch { /* the picture alone, then */ }
  };

  const select = async (points) => {
    chosen = new Set(points);
    later();
    if (!points.length) { picked.replaceChildren(); return; }
    const input = h("input", { placeholder: "label them all", "aria-label": "Label them all", maxLength: 200, list: "all-names" });
    const label = async () => {
      if (!input.value.trim()) return;
      try {
        for (let first = 0; first < points.length; first += 10000) {
          await ask("api/labels", { method: "POST", headers: { "content-type": "application/json" },
            body: JSON.stringify({ rows: points.slice(first, first + 10000).map((point) => rows[point]), label: input.value.trim() }) });
        }
        say(`${points.length.toLocaleString("en")} pictures are labelled ${input.value.trim()} by hand.`);
        await colour(by.value);
      } catch (error) { say(error.message, true); }
    };
    input.addEventListener("keydown", (event) => { if (event.key === "Enter") label(); event.stopPropagation(); });
    const some = [...points].sort(() => Math.random() - 0.5).slice(0, 24);
    const cells = await Promise.all(some.map(async (point) => cell(await ask(`api/pictures/${rows[point]}`))));
    picked.replaceChildren(h("div", { class: "bar" }, h("h2", {}, `${points.length.toLocaleString("en")} selected`), input,
      h("datalist", { id: "all-names" }, ...about.labels.map((value) => h("option", { value }))),
      h("button", { type: "button", onclick: label }, "Label"), h("button", { type: "button", onclick: () => select([]) }, "Let go")),
    walkable(h("div", { class: "few" }, ...cells)));
  };

  const inside = (polygon) => {
    const found = [];
    for (let point = 0; point < count; point++) {
      const [x, y] = place(at[2 * point], at[2 * point + 1]);
      let within = false;
      for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
        const [xi, yi] = polygon[i], [xj, yj] = polygon[j];
        if ((yi > y) !== (yj > y) && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) within = !within;
      }
      if (within) found.push(point);
    }
    return found;
  };

  const colour = async (how) => {
    const answer = await ask(`api/map/colours?${new URLSearchParams({ by: how })}`);
    names = answer.names;
    const table = how === "outlier" ? Array.from({ length: 256 }, (_, i) => packed(`#${[60 + 0.76 * i, 110 - 0.2 * i, 190 - 0.65 * i].map((v) => Math.round(v).toString(16).padStart(2, "0")).join("")}`))
      : PALETTE.map(packed);
    const none = packed("#9aa0a4");
    answer.codes.forEach((code, point) => { colours[point] = code < 0 ? (names.length || how === "outlier" ? none : packed(ink)) : table[how === "outlier" ? code : code % table.length]; });
    legend.replaceChildren(...(how === "outlier" ? [h("span", { class: "quiet" }, names.length ? "blue: like others; red: strange" : "no outlier scores yet: instdisc outliers RUN computes them")]
      : names.slice(0, 24).map((name, number) => {
        const dot = h("i", { class: "dot" });
        dot.style.background = PALETTE[number % PALETTE.length];
        return how === "cluster" ? h("span", {}, dot, name) : h("a", { href: link("", { label: name }) }, dot, name);
      })));
    later();
  };

  const spots = new Map(); // pointers that are down
  let moved = 0, drawing = false;
  const spot = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  canvas.addEventListener("pointerdown", (event) => {
    if (side === 1) fit(); // quicker than the first frame
    canvas.setPointerCapture(event.pointerId);
    spots.set(event.pointerId, spot(event));
    moved = 0;
    drawing = event.shiftKey || lasso.getAttribute("aria-pressed") === "true";
    line = drawing ? [spot(event)] : [];
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = spot(event), before = spots.get(event.pointerId);
    if (!before) { hover(...now); return; }
    moved += Math.abs(now[0] - before[0]) + Math.abs(now[1] - before[1]);
    if (drawing) line.push(now);
    else if (spots.size === 2) {
      const other = [...spots].find(([id]) => id !== event.pointerId)[1];
      const apart = (one) => Math.hypot(one[0] - other[0], one[1] - other[1]);
      zoom(apart(now) / Math.max(1, apart(before)), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    } else { left += now[0] - before[0]; top += now[1] - before[1]; }
    spots.set(event.pointerId, now);
    later();
  });
  const up = (event) => {
    if (!spots.delete(event.pointerId)) return;
    if (drawing && line.length > 2) select(inside(line));
    else if (moved < 4 && event.type === "pointerup") {
      const point = near(...spot(event));
      if (point >= 0) location.hash = link(`picture/${rows[point]}`);
    }
    line = [];
    drawing = false;
    later();
  };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("pointerleave", () => { shown = -1; card.hidden = true; });
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(Math.exp(-event.deltaY * 0.002), ...spot(event)); }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
    if (step) { left += step[0]; top += step[1]; later(); }
    else if (event.key === "+" || event.key === "=") zoom(1.4, canvas.clientWidth / 2, canvas.clientHeight / 2);
    else if (event.key === "-") zoom(1 / 1.4, canvas.clientWidth / 2, canvas.clientHeight / 2);
    else if (event.key === "0") fit();
    else return;
    event.preventDefault();
  });
  const lasso = h("button", { type: "button", "aria-pressed": "false", title: "Draw around points to select them (or drag with Shift)",
    onclick: () => lasso.setAttribute("aria-pressed", String(lasso.getAttribute("aria-pressed") !== "true")) }, "Select by drawing");
  const by = h("select", { onchange: () => colour(by.value) }, h("option", { value: "label" }, "label"), h("option", { value: "cluster" }, "cluster"), h("option", { value: "outlier" }, "strangeness"));
  const watcher = new ResizeObserver(fit);
  watcher.observe(canvas);
  keep(() => watcher.disconnect());
  await colour("label");
  return [h("div", { class: "bar" }, h("h1", {}, `${count.toLocaleString("en")} pictures, the alike together`), h("span", { class: "room" }),
    h("label", {}, "colour by ", by), lasso, h("button", { type: "button", onclick: fit }, "Whole map")),
  legend, h("div", { class: "plane" }, canvas, card), picked];
}
