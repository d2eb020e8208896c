// The grid of a set of pictures, which is in the address.
import { ask, bytes, choice, copyLink, count, empty, facet, fill, get, goTo, h, inBar, link, modal, number, query, quiet, room, standing, walkable, way, working } from "./dom.js";
import { PAGE, gridOf } from "./grid.js";
import { onLabels } from "./journal.js";
import { keepTaste, taste } from "./memory.js";
import { select } from "./tray.js";

const FILTERS = ["label", "by", "tag", "where", "sort", "set", "verdict"];
const SIZES = [["small", "Small"], ["", "Medium"], ["large", "Large"]];

// The part of an address that names a set.
const filterOf = (parameters) => Object.fromEntries(FILTERS.map((name) => [name, parameters[name] ?? ""]));
export const setOf = (parameters) => String(query(filterOf(parameters)));

export const tileSize = (given = taste("size") ?? "") => { document.documentElement.dataset.size = given; };

export async function browse({ parameters, keep, about, again }) {
  const tell = standing(), set = setOf(parameters), filter = filterOf(parameters);
  const at = Math.max(0, Math.floor(Number(parameters.at) || 0));
  const listing = (start, count) => get("api/pictures", { start, count, ...filter });
  const [first, { names }, kept] = await Promise.all([listing(0, PAGE), ask("api/sets"), filter.set && ask(`api/sets/${filter.set}`)]);
  const go = (name) => (value) => goTo("", { ...filter, [name]: value });
  const title = h("h1", filter.set && `${filter.set} · `, `${number(first.total)} pictures`), facets = walkable(h("div.facets", { group: "Labels" }), ".facet");
  const everything = working(`Select all ${number(first.total)}`, async () => select(new Int32Array(await bytes(`api/rows?${set}`))), { title: "Select every picture of this view" });
  const bar = h("div.bar.browse", title, facets, room(),
    Object.entries({ label: about.labels, tag: about.tags, set: names, verdict: about.verdicts }).map(([name, all]) => all.length > 0 && choice(name, [["", `All ${name}s`], ...all.map((one) => [one, one].flat().slice(0, 2))], filter[name], go(name), false)),
    h("input", { type: "search", value: filter.where, placeholder: "beach or 2024/*", label: "name", size: 13, onchange: ({ target }) => go("where")(target.value.trim()) }),
    choice("sort", about.orders, filter.sort, go("sort"), false),
    choice("size", SIZES, taste("size") ?? "", (value) => { keepTaste("size", value); tileSize(value); grid?.resize(); }, false), first.total && everything);
  const forget = () => modal(`Delete the set “${filter.set}”?`, "Its pictures stay.", "Delete", async () => {
    await ask(`api/sets/${filter.set}`, { method: "DELETE" });
    goTo("");
  });
  const origin = kept && inBar(quiet(`Kept on ${kept.made.slice(0, 10)}${kept.origin && `, from “${kept.origin}”`}.`, kept.gone > 0 && ` ${count(kept.gone, "picture")} of it left the collection.`), room(), copyLink(), h("button", forget, "Delete set"));
  let grid;
  // By whom the labels are, once there are any.
  const tally = async () => {
    if (!about.labelled && !filter.by) { fill(facets); return; }
    const { classes, none } = await ask("api/labels");
    const sum = (name) => classes.filter((one) => !filter.label || one.label === filter.label).reduce((total, one) => total + one[name], 0);
    const to = (by, text, amount) => facet(link("", { ...filter, by }), by === filter.by, text, amount);
    fill(facets, to("", "all", null), to("you", "by you", sum("hand")), to("suggested", "suggested", sum("suggested")), to("none", "none", filter.label ? null : none));
    facets.settle();
  };
  // The pictures come first.
  setTimeout(() => tally().catch(() => {}), about.labelled ? 300 : 0);
  onLabels(keep, async () => {
    // Other pictures may belong to it now.
    if (set) { await again(); return; }
    grid?.refresh(true);
    await tally().catch(() => {});
  });
  if (!first.total) {
    const why = filter.by ? "No picture here has such a label. Label some, and others are suggested." : "Type a part of a name; * stands for any text and ? for one letter.";
    return [bar, origin, empty("No picture matches", why, way("#/", "All pictures"))];
  }
  grid = gridOf(first.total, async (start, many) => (await listing(start, many)).pictures, {
    first: first.pictures, at, row: history.state?.row, set, guessed: about.labelled, moved: (place) => tell(link("", { ...filter, at: place || "" })),
    range: async (from, to) => [...new Int32Array(await bytes(`api/rows?${new URLSearchParams({ ...filter, start: from, count: to - from + 1 })}`))] });
  keep(() => grid.close());
  return [bar, origin, grid.host];
}
