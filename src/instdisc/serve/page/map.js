// All pictures as points: what is alike stands together. Regions can be looked at and labelled.
import { ask, bytes, empty, h, image, link, post, say, standing, visit, words } from "./dom.js";
import { Grid } from "./grid.js";
import { packed, Plane } from "./plane.js";

const LIGHT = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b98100", "#3aa0dc", "#882255", "#44aa99", "#8a8a1f", "#aa4499", "#7a3b12", "#5b7fc7"];
const DARK = ["#4ba3e3", "#ff8a50", "#35c795", "#e79ac6", "#f0b429", "#8fd6f7", "#d9679f", "#62d6c3", "#cfcf5e", "#c884dc", "#c99a78", "#a5b8f0"];
const NONE = { light: "#b4b9bd", dark: "#555f66" };
const MOST = 60, ASKED = 100; // corners of a selection in the address; names asked for at once

export async function map(parameters, keep, about) {
  const stay = standing();
  const state = await ask("api/map");
  if (state.state === "ready") return view(parameters, keep, about, stay);
  if (state.state === "computing") return [h("h1", {}, "The map"), await waiting(keep)];
  const begin = async () => {
    try { await ask("api/map", { method: "POST" }); dispatchEvent(new Event("hashchange")); } catch (error) { say(error.message, true); }
  };
  return [empty("There is no map yet", `${state.error ? `${state.error} ` : ""}Pictures that are alike will stand together. It is computed once, about a minute for 10,000 pictures, and kept.`,
    h("button", { type: "button", class: "main", onclick: begin }, state.error ? "Try again" : "Compute the map"))];
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

// Rows and points in an order that no label is above the others by.
async function points() {
  const content = await bytes("api/map/points");
  const count = content.byteLength / 12, given = new Int32Array(content, 0, count), places = new Float32Array(content, 4 * count, 2 * count);
  const order = Uint32Array.from({ length: count }, (_, point) => point);
  for (let point = count - 1, state = 1; point > 0; point--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const other = state % (point + 1);
    [order[point], order[other]] = [order[other], order[point]];
  }
  const rows = new Int32Array(count), at = new Float32Array(2 * count);
  order.forEach((from, point) => { rows[point] = given[from]; at[2 * point] = places[2 * from]; at[2 * point + 1] = places[2 * from + 1]; });
  return { count, rows, at, order };
}

async function view(parameters, keep, about, stay) {
  const { count, rows, at, order } = await points();
  const canvas = h("canvas", { class: "map", tabIndex: 0, role: "application",
    "aria-label": `Map of ${count} pictures: arrows move, plus and minus zoom, 0 shows all, Enter opens the picture in the middle; drag with Shift selects` });
  const card = h("div", { class: "card", hidden: true }), legend = h("div", { class: "legend" });
  const picked = h("section", { class: "picked", "aria-label": "Selected", hidden: true });
  const here = { by: parameters.get("by") ?? "label", see: parameters.get("see"), around: parameters.get("around") };
  let telling, left = false;
  const tell = () => {
    clearTimeout(telling);
    if (left) return;
    stay(link("map", { ...here, by: here.by === "label" ? null : here.by }));
  };
  const plane = new Plane(canvas, at, () => {
    clearTimeout(telling);
    telling = setTimeout(() => { // once the hand rests
      here.see = plane.scale === 1 ? null : [...plane.middle(), plane.scale].map((one) => one.toPrecision(5)).join(",");
      tell();
    }, 250);
  });
  keep(() => { left = true; clearTimeout(telling); });

  let shown = -1, naming;
  const hover = (point) => {
    if (point === shown) return;
    shown = point;
    clearTimeout(naming);
    card.hidden = point < 0;
    canvas.classList.toggle("over", point >= 0);
    if (point < 0) return;
    const [x, y] = plane.place(at[2 * point], at[2 * point + 1]);
    card.style.left = `${x + 160 > canvas.clientWidth ? Math.max(4, x - 156) : x + 12}px`;
    card.style.top = `${Math.max(4, Math.min(canvas.clientHeight - 190, y + 12))}px`;
    card.replaceChildren(image(rows[point]));
    naming = setTimeout(async () => { // not for every point on the way of a pointer
      try {
        const one = await ask(`api/pictures/${rows[point]}`);
        if (shown === point) card.append(h("span", {}, words(one)));
      } catch { /* the picture alone, then */ }
    }, 60);
  };

  let grid;
  keep(() => grid?.close());
  const select = (polygon) => {
    const found = polygon ? plane.inside(polygon) : [];
    plane.line = found.length ? polygon : [];
    plane.chosen = found.length ? new Uint8Array(count) : null;
    found.forEach((point) => { plane.chosen[point] = 1; });
    here.around = found.length ? polygon.flat().map((one) => one.toFixed(4)).join(",") : null;
    grid?.close();
    plane.later();
    tell();
    picked.hidden = !found.length;
    if (polygon && !found.length) say("No picture stands inside of that line.");
    if (!found.length) return;
    const chosen = found.map((point) => rows[point]).sort((a, b) => a - b);
    grid = new Grid(chosen.length, async (start, many) => {
      const parts = [];
      for (let first = start; first < Math.min(start + many, chosen.length); first += ASKED) {
        parts.push(ask(`api/pictures?rows=${chosen.slice(first, Math.min(first + ASKED, start + many)).join(",")}`));
      }
      return (await Promise.all(parts)).flatMap((part) => part.pictures);
    }, { row: history.state?.row });
    picked.replaceChildren(chooser(chosen), grid.host);
  };
  const chooser = (chosen) => {
    const input = h("input", { placeholder: "label them all", "aria-label": "Label them all", maxLength: 200, list: "all-names", size: 14 });
    const label = async () => {
      const given = input.value.trim();
      if (!given) return;
      try {
        for (let first = 0; first < chosen.length; first += 10_000) await post("api/labels", { rows: chosen.slice(first, first + 10_000), label: given });
        say(`${chosen.length.toLocaleString("en")} pictures are labelled ${given} by hand.`);
        await colour(here.by);
      } catch (error) { say(error.message, true); }
    };
    input.addEventListener("keydown", (event) => { if (event.key === "Enter") label(); event.stopPropagation(); });
    return h("div", { class: "bar" }, h("h2", {}, `${chosen.length.toLocaleString("en")} selected`), h("span", { class: "room" }), input,
      h("datalist", { id: "all-names" }, ...about.labels.map((value) => h("option", { value }))),
      h("button", { type: "button", onclick: label }, "Label"), h("button", { type: "button", onclick: () => select(null) }, "Let go"));
  };

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = async (how) => {
    const { names, codes } = await ask(`api/map/colours?${new URLSearchParams({ by: how })}`);
    here.by = how;
    const look = getComputedStyle(document.documentElement), palette = dark.matches ? DARK : LIGHT, none = NONE[dark.matches ? "dark" : "light"];
    plane.ink = look.getPropertyValue("--accent").trim();
    plane.paper = packed(look.getPropertyValue("--sheet").trim());
    const entry = (shade, text, address) => {
      const dot = h("i", { class: "dot" });
      dot.style.background = shade;
      return address ? h("a", { href: address }, dot, text) : h("span", {}, dot, text);
    };
    let table, said;
    if (how === "outlier") {
      const hex = (number) => Math.round(number).toString(16).padStart(2, "0");
      const [low, high] = dark.matches ? [[62, 92, 128], [255, 138, 80]] : [[150, 178, 205], [200, 40, 0]];
      const shades = Array.from({ length: 256 }, (_, shade) => `#${low.map((one, place) => hex(one + (high[place] - one) * (shade / 255) ** 2)).join("")}`);
      table = shades.map(packed);
      said = names.length ? [entry(shades[0], "like others"), entry(shades[180], "less"), entry(shades[255], "strange")]
        : [h("span", { class: "quiet" }, "There are no outlier scores yet: ", h("code", {}, "instdisc outliers RUN"), " computes them.")];
    } else { // as many colours as can be told apart, for the largest
      const sizes = new Array(names.length).fill(0);
      for (const code of codes) if (code >= 0) sizes[code] += 1;
      const ranked = names.map((_, code) => code).filter((code) => sizes[code]).sort((a, b) => sizes[b] - sizes[a] || a - b);
      const told = (ranked.length > palette.length ? ranked.slice(0, palette.length - 1) : ranked).sort((a, b) => a - b), rest = ranked.length - told.length;
      table = new Array(names.length).fill(packed(none));
      told.forEach((code, place) => { table[code] = packed(palette[place]); });
      said = told.map((code, place) => entry(palette[place], names[code], how === "label" ? link("", { label: names[code] }) : null));
      if (rest) said.push(entry(none, `${rest} smaller ones`));
      else if (codes.some((code) => code < 0) && told.length) said.push(entry(none, "no label"));
    }
    const without = packed(how === "label" && !names.length ? plane.ink : none);
    for (let point = 0; point < count; point++) {
      const code = codes[order[point]];
      plane.colours[point] = code < 0 ? without : table[code];
    }
    legend.replaceChildren(...said);
    plane.later();
    tell();
  };
  const recolour = () => colour(here.by).catch((error) => say(error.message, true));
  dark.addEventListener("change", recolour);
  keep(() => dark.removeEventListener("change", recolour));

  const lasso = h("button", { type: "button", "aria-pressed": "false", title: "Draw around points to select them (or drag with Shift)",
    onclick: () => lasso.setAttribute("aria-pressed", String(lasso.getAttribute("aria-pressed") !== "true")) }, "Select by drawing");
  handle(canvas, plane, { hover, select, lasso, open: (point) => visit(rows[point]) });
  const by = h("select", { onchange: () => colour(by.value).catch((error) => say(error.message, true)) },
    ...[["label", "label"], ["cluster", "cluster"], ["outlier", "strangeness"]].map(([value, text]) => h("option", { value, selected: value === here.by }, text)));
  const watcher = new ResizeObserver(() => {
    if (!canvas.clientWidth) return; // it is not on the page yet
    const first = !plane.side;
    plane.fit(true);
    if (!first) return;
    const [u, v, scale] = (here.see ?? "").split(",").map(Number);
    if (scale > 0) plane.centre(u, v, scale);
  });
  watcher.observe(canvas);
  keep(() => watcher.disconnect());
  await colour(here.by);
  const corners = (here.around ?? "").split(",").map(Number);
  if (corners.length > 5 && corners.every(Number.isFinite)) select(Array.from({ length: corners.length >> 1 }, (_, i) => [corners[2 * i], corners[2 * i + 1]]));
  const tool = (text, title, act) => h("button", { type: "button", title, "aria-label": title, onclick: act }, text);
  return [h("div", { class: "bar mapping" }, h("h1", {}, `${count.toLocaleString("en")} pictures, the alike together`), h("span", { class: "room" }),
    h("label", {}, "colour by ", by), lasso),
  legend,
  h("div", { class: "plane" }, canvas, card, h("div", { class: "tools" }, tool("+", "Nearer", () => plane.zoom(1.6)), tool("−", "Farther", () => plane.zoom(1 / 1.6)),
    tool("⤢", "The whole map", () => plane.fit(false)))), picked];
}

// What a hand does on the canvas: one finger moves, two zoom, a wheel zooms; Shift or the button draws a line around.
function handle(canvas, plane, { hover, select, lasso, open }) {
  const spots = new Map(); // pointers that are down
  let moved = 0, drawing = false;
  const spot = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  canvas.addEventListener("pointerdown", (event) => {
    if (!plane.side) plane.fit(false); // quicker than the first frame
    canvas.setPointerCapture(event.pointerId);
    spots.set(event.pointerId, spot(event));
    moved = 0;
    drawing = event.shiftKey || lasso.getAttribute("aria-pressed") === "true";
    if (drawing) plane.line = [plane.point(...spot(event))];
    hover(-1);
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = spot(event), before = spots.get(event.pointerId);
    if (!before) { hover(plane.near(...now)); return; }
    moved += Math.abs(now[0] - before[0]) + Math.abs(now[1] - before[1]);
    if (drawing) { plane.line.push(plane.point(...now)); plane.later(); } else if (spots.size === 2) {
      const other = [...spots].find(([id]) => id !== event.pointerId)[1];
      const apart = (one) => Math.hypot(one[0] - other[0], one[1] - other[1]);
      plane.zoom(apart(now) / Math.max(1, apart(before)), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    } else plane.pan(now[0] - before[0], now[1] - before[1]);
    spots.set(event.pointerId, now);
  });
  const up = (event) => {
    if (!spots.delete(event.pointerId)) return;
    if (drawing && moved > 8) {
      const every = Math.max(1, Math.ceil(plane.line.length / MOST));
      select(plane.line.filter((_, number) => number % every === 0));
      lasso.setAttribute("aria-pressed", "false");
    } else if (moved < 4 && event.type === "pointerup") {
      const point = plane.near(...spot(event), event.pointerType === "touch" ? 22 : 10);
      if (point >= 0) open(point);
    }
    drawing = false;
    plane.later();
  };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("pointerleave", () => hover(-1));
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); hover(-1); plane.zoom(Math.exp(-event.deltaY * 0.002), ...spot(event)); }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
    const middle = () => plane.near(canvas.clientWidth / 2, canvas.clientHeight / 2, 60);
    if (step) plane.pan(...step);
    else if (event.key === "+" || event.key === "=") plane.zoom(1.4);
    else if (event.key === "-") plane.zoom(1 / 1.4);
    else if (event.key === "0") plane.fit(false);
    else if (event.key === "Enter") { if (middle() >= 0) open(middle()); } else return;
    event.preventDefault();
    if (event.key !== "Enter") hover(middle());
  });
  canvas.addEventListener("blur", () => hover(-1));
}
