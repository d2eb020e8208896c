// What the colours of the map mean. A click isolates one, a double click opens its pictures.
import { fill, get, goTo, h, quiet, walkable } from "./dom.js";
import { scores } from "./overview.js";
import { packed } from "./plane.js";

const PALETTES = {
  light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b98100", "#3aa0dc", "#882255", "#44aa99", "#8a8a1f", "#aa4499", "#7a3b12", "#5b7fc7"],
  dark: ["#4ba3e3", "#ff8a50", "#35c795", "#e79ac6", "#f0b429", "#8fd6f7", "#d9679f", "#62d6c3", "#cfcf5e", "#c884dc", "#c99a78", "#a5b8f0"],
  lightoutlier: ["#96b2cd", "#a27d87", "#ae4841", "#c82800"],
  darkoutlier: ["#3e5c80", "#6e6874", "#b57861", "#ff8a50"],
};
export const COLOURINGS = [..."label suggestion agreement folder cluster".split(" ").map((how) => [how, how]), ["outlier", "outlier score"]];
const SETS = { label: (label) => ({ label }), suggestion: (label) => ({ label, by: "suggested", sort: "sure" }), folder: (folder) => ({ where: `${folder}/*` }) };

// codes: of the points; colour(code): packed; entries: [{shade, text, code, set}]; note: what else is to be said.
export async function colouring(how, mode, ink) {
  const { names, codes, others, none, note } = await get("api/map/colours", { by: how }), grey = mode === "dark" ? "#555f66" : "#b4b9bd", shades = PALETTES[`${mode}${how}`] ?? PALETTES[mode];
  const entries = names.map((text, code) => (others && code === names.length - 1 ? { text, code, shade: grey } : { text, code, shade: shades[code], set: SETS[how]?.(text) }));
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
