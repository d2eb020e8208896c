// What the keys do in this view, as its elements declare it.
import { all, declared, h, modal } from "./dom.js";
import { taste } from "./memory.js";

const words = (one) => one.title || one.ariaLabel || [...one.childNodes].filter((part) => part.nodeName !== "KBD").map((part) => part.textContent).join("");

export function keySheet() {
  const declaring = all("[aria-keyshortcuts]").filter((one) => one.checkVisibility());
  const line = (keys, text) => h("tr", h("td", ...keys.split(" ").map((key) => h("kbd", key))), h("td", text));
  modal("Keys of this view", [taste("off") && h("p", "Keys of a single character are off: “Keys” switches them on."),
    h("div.stack.over", { tabIndex: 0, group: "Keys" }, h("table", h("tbody", declaring.map((one) => line(one.ariaKeyShortcuts, words(one))), !declared("u") && line("u", "Undo the last label or decision"), !declared("Escape") && line("Escape", "Up a view"))),
      all("main :is([role=application], .scroll, .few)[aria-label]").map((one) => h("p.quiet", one.ariaLabel)))]);
}
