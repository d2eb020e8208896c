// Labelling by keyboard: a picture comes, a digit names it, the next one comes.
import { ask, h, image, link, pixels, say } from "./dom.js";

const BATCH = 12;

export async function labelling(parameters, keep, about) {
  const by = parameters.get("by") ?? "mixed";
  let state = await ask("api/labels");
  let queue = [], skipped = new Set(), done = [];
  const names = () => state.classes.map((one) => one.label);
  const stage = h("div", { class: "one" }), side = h("section", { "aria-label": "So far" });

  const more = async () => {
    const { pictures } = await ask(`api/proposals?${new URLSearchParams({ count: BATCH + skipped.size > 100 ? 100 : BATCH + skipped.size, by })}`);
    queue = pictures.filter((one) => !skipped.has(one.row));
  };
  const send = async (row, label) => {
    state = await ask("api/labels", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ rows: [row], label }) });
  };
  const act = async (work) => {
    try { await work(); } catch (error) { say(error.message, true); }
    await draw();
  };
  const choose = (label) => act(async () => {
    const one = queue[0];
    if (!one || !label) return;
    await send(one.row, label);
    done.push(one);
    queue.shift();
  });
  const skip = () => act(async () => { if (queue.length) skipped.add(queue.shift().row); });
  const undo = () => act(async () => {
    const one = done.pop();
    if (!one) return;
    await send(one.row, null);
    queue.unshift(one);
  });

  const table = () => h("table", {}, h("thead", {}, h("tr", {}, h("th", {}, "label"), h("th", {}, "by hand"), h("th", {}, "by vote"))),
    h("tbody", {}, ...state.classes.map((one) => h("tr", {}, h("td", {}, h("a", { href: link("", { label: one.label }) }, one.label)),
      h("td", {}, one.hand.toLocaleString("en")), h("td", {}, one.vote.toLocaleString("en"))))));

  const draw = async () => {
    if (!queue.length) await more();
    const one = queue[0];
    const input = h("input", { list: "known", placeholder: "another label", "aria-label": "Another label", maxLength: 200, size: 16,
      onkeydown: (event) => {
        if (event.key === "Enter") choose(input.value.trim());
        if (event.key === "Escape") input.blur();
        event.stopPropagation();
      } });
    const known = [...new Set([...names(), ...about.labels])];
    side.replaceChildren(...[
      h("h2", {}, "So far"),
      state.accuracy === null ? h("p", { class: "quiet" }, "Nothing is labelled by hand yet.")
        : h("p", {}, `Right on ${(100 * state.accuracy).toFixed(1)} % of those labelled by hand, each by the others `,
          h("span", { class: "quiet" }, `(${(100 * state.interval[0]).toFixed(0)} to ${(100 * state.interval[1]).toFixed(0)}; proposals are the hard ones)`)),
      state.classes.length ? table() : null].filter(Boolean));
    if (!one) {
      stage.replaceChildren(h("p", {}, "Every picture is labelled by hand or passed over."), side);
      return;
    }
    stage.replaceChildren(
      h("section", { "aria-label": "What is it?" },
        image(one.row, { class: "large", alt: one.id }, "full"),
        h("p", { class: "quiet" }, one.id, one.guess ? ` · the votes say ${one.guess} (${Math.round(100 * one.confidence)} %)` : ""),
        h("div", { class: "classes" }, ...names().map((name, place) => h("button", { type: "button", class: name === one.guess ? "guess" : "", onclick: () => choose(name) },
          place < 9 ? h("kbd", {}, String(place + 1)) : null, place < 9 ? " " : null, name))),
        h("div", { class: "bar" }, input, h("datalist", { id: "known" }, ...known.map((value) => h("option", { value }))),
          h("button", { type: "button", onclick: () => choose(input.value.trim()) }, "Label"),
          h("button", { type: "button", onclick: skip }, "Skip"),
          h("button", { type: "button", onclick: undo, disabled: !done.length }, "Undo")),
        h("p", { class: "keys" }, ...(names().length ? [h("kbd", {}, "1"), "–", h("kbd", {}, "9"), " label, ", h("kbd", {}, "Enter"), " what the votes say, "] : []),
          h("kbd", {}, "n"), " another label, ", h("kbd", {}, "s"), " skip, ", h("kbd", {}, "u"), " undo")),
      side);
    if (!names().length) setTimeout(() => input.focus()); // once it is on the page
    for (const next of queue.slice(1, 4)) new Image().src = pixels(next.row, "full");
  };

  const keys = (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^[1-9]$/.test(event.key) && names()[event.key - 1]) choose(names()[event.key - 1]);
    else if (event.key === "Enter" && !event.target.matches("button, a") && queue[0]?.guess) choose(queue[0].guess);
    else if (event.key === "s") skip();
    else if (event.key === "u") undo();
    else if (event.key === "n") stage.querySelector("input")?.focus();
    else return;
    event.preventDefault();
  };
  document.addEventListener("keydown", keys);
  keep(() => document.removeEventListener("keydown", keys));
  await draw();
  return [h("div", { class: "bar" }, h("h1", {}, "Label the collection"), h("span", { class: "room" }),
    h("label", {}, "propose ", h("select", { onchange: (event) => { location.hash = link("label", { by: event.target.value }); } },
      ...[["mixed", "a spread, then doubtful ones"], ["covered", "a spread"], ["uncertain", "doubtful ones"]]
        .map(([value, text]) => h("option", { value, selected: value === by }, text)))),
    h("a", { href: "api/labels.csv", download: "labels.csv" }, "Save all labels")),
  stage];
}
