// The grid of a set of pictures, which is in the address.
import { ask, bytes, choice, empty, facet, fill, get, goTo, h, link, number, room, standing, walkable, way, working } from "./dom.js";
import { Grid, PAGE } from "./grid.js";
import { onLabels } from "./journal.js";
import { keepTaste, taste } from "./memory.js";
import { select } from "./tray.js";

const FILTERS = ["label", "by", "tag", "where", "sort"];
const SIZES = [["small", "Small"], ["", "Medium"], ["large", "Large"]];
const ORDERS = [["", "Collection order"], ["name", "By name"], ["newest", "Newest first"], ["largest", "Largest file first"], ["sure", "Most certain first"], ["unsure", "Least certain first"]];

// The part of an address that names a set.
const filterOf = (parameters) => Object.fromEntries(FILTERS.map((name) => [name, parameters[name] ?? ""]));
export const setOf = (parameters) => link("", filterOf(parameters)).split("?")[1] ?? "";

export const tileSize = (given = taste("size") ?? "") => { document.documentElement.dataset.size = given; };

export async function browse({ parameters, keep, about, again }) {
  const tell = standing(), set = setOf(parameters), filter = filterOf(parameters);
  const at = Math.max(0, Math.floor(Number(parameters.at) || 0));
  const listing = (start, count) => get("api/pictures", { start, count, ...filter });
  const first = await listing(0, PAGE);
  const go = (name) => (value) => goTo("", { ...filter, [name]: value });
  const title = h("h1", `${number(first.total)} pictures`), facets = walkable(h("div.facets", { role: "group", label: "Labels" }), ".facet");
  const everything = working(`Select all ${number(first.total)}`, async () => select(new Int32Array(await bytes(`api/rows?${set}`))), { title: "Select every picture of this view" });
  const bar = h("div.bar.browse", title, facets, room(),
    ...["label", "tag"].map((name) => [name, about[`${name}s`]]).map(([name, all]) => all.length && choice(name, [["", `All ${name}s`], ...all.map((one) => [one, one])], filter[name], go(name), false)),
    h("input", { type: "search", value: filter.where, placeholder: "beach or 2024/*", label: "name", size: 13, onchange: ({ target }) => go("where")(target.value.trim()) }),
    choice("sort", ORDERS, filter.sort, go("sort"), false),
    choice("size", SIZES, taste("size") ?? "", (value) => { keepTaste("size", value); tileSize(value); grid?.measure(); grid?.draw(); }, false), first.total && everything);
  let grid;
  // By whom the labels are, once there are any.
  const count = async () => {
    if (!about.labelled && !filter.by) { fill(facets); return; }
    const { classes, none } = await ask("api/labels");
    const sum = (name) => classes.filter((one) => !filter.label || one.label === filter.label).reduce((total, one) => total + one[name], 0);
    const to = (by, text, amount) => facet(link("", { ...filter, by }), by === filter.by, text, amount);
    fill(facets, to("", "all", null), to("you", "by you", sum("hand")), to("suggested", "suggested", sum("suggested")), to("none", "none", filter.label ? null : none));
    facets.settle();
  };
  // The pictures come first.
  setTimeout(() => count().catch(() => {}), about.labelled ? 300 : 0);
  onLabels(keep, async () => {
    // Other pictures may belong to it now.
    if (set) { await again(); return; }
    grid?.refresh(true);
    await count().catch(() => {});
  });
  if (!first.total) {
    const why = filter.by ? "No picture here has such a label. Label some, and others are suggested." : "Type a part of a name; * stands for any text and ? for one letter.";
    return [bar, empty("No picture matches", why, way("#/", "All pictures"))];
  }
  grid = new Grid(first.total, async (start, many) => (await listing(start, many)).pictures, {
    first: first.pictures, at, row: history.state?.row, set, guessed: about.labelled, moved: (place) => tell(link("", { ...filter, at: place || "" })),
    range: async (from, to) => [...new Int32Array(await bytes(`api/rows?${new URLSearchParams({ ...filter, start: from, count: to - from + 1 })}`))] });
  keep(() => grid.close());
  return [bar, grid.host];
}
