// All pictures in the plane.
import { answered, ask, choice, clamp, complain, empty, fill, get, h, image, link, number, on, press, quiet, room, say, standing, underWay, visit, words, working, zooming } from "./dom.js";
import { gridOf } from "./grid.js";
import { Cursor, handle } from "./hand.js";
import { onLabels } from "./journal.js";
import { colouring, legend } from "./legend.js";
import { mosaicOf } from "./mosaic.js";
import { Plane, naming, packed } from "./plane.js";
import { selection, watch } from "./selection.js";
import { flip, select, selectMore } from "./tray.js";

// Names asked for at once.
const ASKED = 100;

export async function map({ parameters, keep, about }) {
  const stay = standing();
  const state = await ask("api/map"), reload = () => dispatchEvent(new Event("hashchange"));
  if (state.state === "ready") return view(parameters, keep, about, stay);
  if (state.state === "computing") return [h("h1", "The map"), underWay("api/map", "Computing the map", false, reload)];
  return [empty("There is no map yet", `${state.error ? `${state.error} ` : ""}Similar pictures are placed close together. It is computed once, about a minute for 10,000 pictures, and kept.`,
    working(state.error ? "Try again" : "Compute the map", async () => { await ask("api/map", { method: "POST" }); reload(); }, { class: "main" }))];
}

async function points() {
  const answer = await answered("api/map/points"), content = await answer.arrayBuffer(), count = content.byteLength / 12;
  return { count, rows: new Int32Array(content, 0, count), at: new Float32Array(content, 4 * count), version: answer.headers.get("etag").replaceAll('"', "") };
}

// The picture under a pointer, larger.
function lens(plane, rows) {
  const card = h("div.card", { role: "status", hidden: true });
  let shown = -1, naming;
  const hover = (point) => {
    if (point === shown) return;
    shown = point;
    clearTimeout(naming);
    card.hidden = point < 0;
    if (point < 0) return;
    // Beside its cell.
    const [x, y] = plane.place(plane.at[2 * point], plane.at[2 * point + 1]), side = 26;
    card.style.left = `${x + side + 150 > plane.width ? Math.max(4, x - side - 144) : x + side}px`;
    card.style.top = `${clamp(y + 12, plane.height - 200, 4)}px`;
    fill(card, image(rows[point]));
    // Not for every point on the way of a pointer.
    naming = setTimeout(async () => {
      try {
        const one = await ask(`api/pictures/${rows[point]}`);
        if (shown === point) card.append(h("span", words(one)));
      } catch { /* the picture alone, then */ }
    }, 60);
  };
  return { card, hover };
}

// What is selected, below the map.
function picked(keep, about) {
  const section = h("section.picked", { label: "Selected", hidden: true });
  let grid;
  keep(() => grid?.close());
  return Object.assign(section, {
    show(all) {
      grid?.close();
      section.hidden = !all.length;
      grid = all.length ? gridOf(all.length, async (start, many) => {
        const asked = all.slice(start, start + many), parts = [];
        while (asked.length) parts.push(get("api/pictures", { rows: asked.splice(0, ASKED) }));
        return (await Promise.all(parts)).flatMap((part) => part.pictures);
      }, { row: history.state?.row, guessed: about.labelled, range: async (from, to) => all.slice(from, to + 1) }) : null;
      fill(section, grid?.host);
    },
    refresh: () => grid?.refresh(true),
  });
}

async function view(parameters, keep, about, stay) {
  const { count, rows, at, version } = await points();
  const canvas = h("canvas.map", { tabIndex: 0, role: "application",
    label: `Map of ${count} pictures: arrows move a cursor, with Shift they select, Space selects its cell, x its picture, Shift-x all in sight, Enter opens it; plus, minus and 0 zoom` });
  const here = { by: "label", see: null, as: null, only: null, ...parameters };
  let telling, left = false;
  const tell = () => {
    clearTimeout(telling);
    if (!left) stay(link("map", { ...here, by: here.by === "label" ? null : here.by }));
  };
  const plane = new Plane(canvas, at, () => {
    clearTimeout(telling);
    // Once the hand rests.
    telling = setTimeout(() => {
      plane.later();
      here.see = plane.scale === 1 ? null : [...plane.middle(), plane.scale].map((one) => one.toPrecision(5)).join(",");
      tell();
    }, 250);
  });
  const mosaic = mosaicOf(plane, version), cursor = new Cursor(plane, mosaic), names = naming(plane), below = picked(keep, about), { card, hover } = lens(plane, rows);
  mosaic.pictures = here.as !== "dots";
  plane.layers.push(mosaic, names, cursor);
  keep(() => { left = true; clearTimeout(telling); mosaic.close(); });

  const rowsOf = (found) => found.map((point) => rows[point]).sort((a, b) => a - b);
  // What a line goes around is selected; more: beside what is already.
  const lassoed = (polygon, more) => {
    const found = plane.inside(polygon);
    plane.line = [];
    plane.later();
    if (found.length) (more ? selectMore : select)(rowsOf(found));
    else say("No pictures in the selection.");
  };
  let before = [], shown = "";
  const extend = (found, begun) => {
    if (begun) before = selection.rows;
    select([...before, ...rowsOf(found)]);
  };
  const places = new Map();
  rows.forEach((row, place) => places.set(row, place));
  const chosen = () => {
    const all = selection.rows, key = all.join(",");
    if (key === shown) return;
    shown = key;
    plane.chosen = all.length ? new Uint8Array(count) : null;
    for (const row of all) if (places.has(row)) plane.chosen[places.get(row)] = 1;
    plane.later();
    below.show(all);
  };
  keep(watch(chosen));

  const entries = legend((entry) => {
    plane.only = entry?.code ?? null;
    here.only = entry?.text ?? null;
    plane.later();
    tell();
  });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let wanted = 0;
  const colour = async (how) => {
    const mine = ++wanted, look = getComputedStyle(document.documentElement), ink = look.getPropertyValue("--accent").trim();
    if (how === "cluster") fill(entries, quiet("Computing clusters …"));
    const found = await colouring(how, dark.matches, ink, about);
    // Another colouring was asked for meanwhile.
    if (mine !== wanted) return;
    here.by = how;
    Object.assign(plane, { ink, found, pale: packed(look.getPropertyValue("--line").trim()), codes: Int32Array.from(found.codes), colours: Uint32Array.from(found.codes, found.colour) });
    entries.show(found, here.only);
  };
  const name = async () => {
    names.regions = (await ask("api/map/names")).regions;
    plane.later();
  };
  const recolour = (how = here.by) => colour(how).catch(complain);
  const redraw = () => recolour();
  onLabels(keep, () => { recolour(); name().catch(complain); below.refresh(); });
  keep(on(dark, "change", redraw));

  const toggled = (text, title, on, act) => h("button", { pressed: on, title, onclick: ({ currentTarget }) => { press(currentTarget, on = !on); act(on); } }, text);
  const lasso = toggled("Lasso", "Draw around pictures to select them (or drag with Shift)", false, () => {});
  const dots = toggled("Dots", "Dots instead of pictures", !mosaic.pictures, (on) => {
    mosaic.pictures = !on;
    here.as = on ? "dots" : null;
    plane.later();
    tell();
  });
  handle(plane, mosaic, cursor, lasso, { hover, lassoed, extend, open: (one) => visit(rows[one]), pick: (found) => flip(rowsOf(found)) });
  const by = choice("colour by", about.colourings, here.by, (how) => { here.only = null; recolour(how); });
  const watcher = new ResizeObserver(() => {
    // It is not on the page yet.
    if (!canvas.clientWidth) return;
    const first = !plane.wide;
    plane.fit(true);
    mosaic.cut();
    const [u, v, scale] = (here.see ?? "").split(",").map(Number);
    if (first && scale > 0) plane.centre(u, v, scale);
  });
  watcher.observe(canvas);
  keep(() => watcher.disconnect());
  await colour(here.by);
  name().catch(complain);
  chosen();
  return [h("div.bar.mapping", h("h1", `Map · ${number(count)} pictures`), room(), by, dots, lasso), entries,
    h("div.plane", canvas, card, h("div.tools", zooming((by) => plane.zoom(by), () => plane.fit(false)))), below];
}
