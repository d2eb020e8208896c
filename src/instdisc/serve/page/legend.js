// What the colours of the map mean. A click isolates one, a double click opens its pictures.
import { fill, get, goTo, h, quiet, walkable } from "./dom.js";
import { scores } from "./overview.js";
import { packed } from "./plane.js";

const SETS = { compare: (_, code, about) => ({ verdict: about.verdicts[code][0] }), label: (label) => ({ label }), suggestion: (label) => ({ label, by: "suggested", sort: "sure" }), folder: (folder) => ({ where: `${folder}/*` }) };

// codes: of the points; colour(code): packed; entries: [{shade, text, code, set}]; note: what else is to be said.
export async function colouring(how, dark, ink, about) {
  const { names, codes, others, none, note, shades } = await get("api/map/colours", { by: how }), grey = dark ? "#555f66" : "#b4b9bd";
  const entries = names.map((text, code) => (others && code === names.length - 1 ? { text, code, shade: grey } : { text, code, shade: shades[code][Number(dark)], set: SETS[how]?.(text, code, about) }));
  const table = entries.map((entry) => packed(entry.shade)), without = packed(how === "label" && !names.length ? ink : grey);
  if (none) entries.push({ text: none, code: -1, shade: grey });
  return { codes, colour: (code) => table[code] ?? without, entries, note, make: how === "outlier" && note };
}

// isolated(entry): is told which one alone is meant, null for all.
export function legend(isolated) {
  const element = walkable(h("div.legend"), "a");
  const show = (given, only) => {
    const { entries, note, make } = given;
    const found = entries.find((entry) => entry.text === only) ?? null, focused = element.contains(document.activeElement);
    fill(element, entries.map((entry) => {
      const dot = h("i.dot"), open = () => { if (entry.set) goTo("", entry.set); }, pressed = entry === found;
      dot.style.background = entry.shade;
      return h("a", { role: "button", href: "#", pressed: pressed, title: `Click: only these.${entry.set ? " Double click, or o: open them." : ""}`,
        onclick: (event) => { event.preventDefault(); show(given, pressed ? "" : entry.text); }, ondblclick: open, onkeydown: (event) => { if (event.key === "o") open(); } }, dot, entry.text);
    }), make && scores(), quiet(note ?? ""));
    element.settle();
    if (focused) element.children[Math.max(0, entries.indexOf(found))]?.focus();
    isolated(found);
  };
  return Object.assign(element, { show });
}
