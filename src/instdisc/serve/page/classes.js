// The classes: their keys, how many pictures have each, and other names for them.
import { choice, complain, h, labelField, link, number, walkable } from "./dom.js";
import { rename } from "./journal.js";

// In the order of the classes; letters that do something else are left out.
export const KEYS = [..."1234567890abcdefghijkmopqrtvwyz"];

export function classes(state) {
  const at = (one) => KEYS[state.order.indexOf(one.label)];
  const line = (one) => h("tr", h("td", at(one) ? h("kbd", at(one)) : "", " ", one.label),
    h("td", h("a", { href: link("", { label: one.label, by: "you" }), label: `${one.label}: ${number(one.hand)} by you` }, number(one.hand))),
    h("td", one.suggested ? h("a", { href: link("", { label: one.label, by: "suggested", sort: "sure" }), label: `${one.label}: ${number(one.suggested)} suggested` }, number(one.suggested)) : "0"));
  const table = walkable(h("table", h("thead", h("tr", h("th", "class"), h("th", "by you"), h("th", "suggested"))), h("tbody", ...state.classes.map(line))), "a");
  let chosen = state.classes[0].label;
  const input = labelField("New name of the class", (to) => rename(chosen, to).catch(complain), { placeholder: "New name, or another class", size: 25 });
  const choose = choice("rename", state.classes.map((one) => [one.label, one.label]), "", (value) => { chosen = value; });
  return h("div.stack", table, h("div.bar.renaming", choose, input, h("button", { title: "The name of another class merges them", onclick: input.given }, "Rename or merge")),
    h("p.quiet", `${number(state.none)} pictures have neither a label by you nor a suggestion of 50 % or more.`));
}
