// Two runs side by side: which one is right, what was measured, what has changed most.
import { ask, cell, fill, get, h, inBar, link, number, quiet, underWay, walkable, way, working } from "./dom.js";
import { strip } from "./look.js";

export async function compare({ about }) {
  const { first, second, matched, measured, note } = await ask("api/compare"), wait = () => underWay("api/work", `Comparing ${number(matched)} pictures`, true);
  const who = h("div.stack", wait()), changed = h("div.stack", wait()), list = h("div.stack", { group: "Most changed first" });
  const more = async () => {
    const { pictures, total } = await get("api/compare/changed", { start: list.children.length, count: 6 });
    list.append(...pictures.map((one) => h("div.changed", cell(one.picture, { pick: false, set: "sort=changed" }), h("div.stack", strip(first.name, one, "first"), strip(second.name, one, "second")))));
    walkable(list);
    button.hidden = list.children.length >= total;
  };
  const button = working("Show more", more), terms = (lines) => h("dl", lines.map(([term, ...value]) => [h("dt", term), h("dd", ...value)]));
  const told = async (host, work) => fill(host, await work().catch((error) => h("p.lost", error.message)));
  told(who, async () => {
    const found = await ask("api/compare/agreement");
    return found.labelled ? terms(about.verdicts.map(([name, text]) => [text, h("a", { href: link("", { verdict: name }) }, number(found[name]))])) : quiet("Labels of two classes are needed to tell.");
  }).then(() => told(changed, async () => { await more(); return [list, button]; }));
  const row = (kind, ...texts) => h("tr", texts.map((text) => h(kind, text)));
  return [inBar(h("h1", `${first.name} and ${second.name}`), quiet(`${number(matched)} pictures in both, by their ids`)),
    terms([first, second].map((one) => [one.name, `${one.vectors} vectors, ${one.dim} dimensions, ${number(one.pictures)} pictures`])),
    h("div.cards", h("section.stack", h("h2", "Which run is right"), who),
      h("section.stack", h("h2", "Measured"), measured.length > 0 && h("table", h("thead", row("th", "", first.name, second.name)), h("tbody", measured.map((one) => row("td", one.name, one.first, one.second)))), quiet(note))),
    inBar(h("h2", "Most changed"), quiet("Fewest of the ten nearest are in both (underlined)"), way(link("", { sort: "changed" }), "Browse by it")), changed];
}
