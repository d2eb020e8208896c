// Labelling by keyboard: a picture comes, a digit names it, the next one comes.
import { ask, empty, h, image, link, pixels, post, recall, remember, say } from "./dom.js";

const BATCH = 12, FEW = 4; // proposals asked for at once; with fewer left, the next are asked for
const SVG = "http://www.w3.org/2000/svg";

// How accuracy has grown: [labelled by hand, share right] for each label of this tab.
function curve(points) {
  if (points.length < 2) return null;
  const width = 220, height = 44, last = points.at(-1);
  const low = points[0][0], span = Math.max(1, last[0] - low);
  const at = points.map(([count, share]) => `${(4 + (width - 8) * (count - low) / span).toFixed(1)},${(4 + (height - 8) * (1 - share)).toFixed(1)}`);
  const drawing = document.createElementNS(SVG, "svg"), line = document.createElementNS(SVG, "polyline"), end = document.createElementNS(SVG, "circle");
  drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
  drawing.setAttribute("class", "curve");
  drawing.setAttribute("role", "img");
  drawing.setAttribute("aria-label", `From ${low} to ${last[0]} labels: ${points.map((one) => `${Math.round(100 * one[1])} %`).slice(-8).join(", ")}`);
  line.setAttribute("points", at.join(" "));
  const [x, y] = at.at(-1).split(",");
  end.setAttribute("cx", x);
  end.setAttribute("cy", y);
  end.setAttribute("r", "3");
  drawing.append(line, end);
  return drawing;
}

export async function labelling(parameters, keep, about) {
  const by = parameters.get("by") ?? "mixed", stored = `${about.name} accuracy`;
  let state = await ask("api/labels");
  let queue = [], done = [], coming;
  let grown = recall(stored).points ?? [];
  const passed = new Set(); // skipped, or labelled since proposals were asked for
  const order = recall(stored).order ?? []; // a label keeps its digit when others come
  const names = () => {
    const there = state.classes.map((one) => one.label);
    order.push(...there.filter((one) => !order.includes(one)));
    return order.filter((one) => there.includes(one));
  };
  const stage = h("div", { class: "one" }), side = h("section", { class: "side", "aria-label": "So far" });

  const more = () => {
    coming ??= ask(`api/proposals?${new URLSearchParams({ count: Math.min(100, BATCH + queue.length + passed.size), by })}`).then(({ pictures }) => {
      const there = new Set(queue.map((one) => one.row));
      queue.push(...pictures.filter((one) => !passed.has(one.row) && !there.has(one.row)));
    }).finally(() => { coming = undefined; });
    return coming;
  };
  const send = async (row, label) => {
    state = await post("api/labels", { rows: [row], label });
    const count = state.classes.reduce((sum, one) => sum + one.hand, 0);
    grown = grown.filter((one) => one[0] < count);
    if (state.accuracy !== null) grown.push([count, state.accuracy]);
    remember(stored, { points: grown.slice(-500), order: names() });
  };
  let acting = Promise.resolve(); // one deed after another, however quick the fingers
  const act = (work) => {
    acting = acting.then(work).catch((error) => say(error.message, true)).then(draw).catch((error) => say(error.message, true));
    return acting;
  };
  const choose = (label) => act(async () => {
    const one = queue[0];
    if (!one || !label) return;
    await send(one.row, label);
    passed.add(one.row);
    done.push(one);
    queue.shift();
  });
  const skip = () => act(async () => { if (queue.length) passed.add(queue.shift().row); });
  const undo = () => act(async () => {
    const one = done.pop();
    if (!one) return;
    await send(one.row, null);
    passed.delete(one.row);
    queue.unshift(one);
  });

  const table = () => h("table", {}, h("thead", {}, h("tr", {}, h("th", {}, "label"), h("th", {}, "by hand"), h("th", {}, "by vote"))),
    h("tbody", {}, ...names().map((name) => state.classes.find((one) => one.label === name)).map((one) => h("tr", {}, h("td", {}, h("a", { href: link("", { label: one.label }) }, one.label)),
      h("td", {}, one.hand.toLocaleString("en")), h("td", {}, one.vote.toLocaleString("en"))))));

  const draw = async () => {
    if (!queue.length) await more();
    else if (queue.length <= FEW) more().catch(() => {}); // asked for again, and told, when none is left
    const one = queue[0];
    const input = h("input", { list: "known", placeholder: names().length ? "another label" : "the first label", "aria-label": "Another label", maxLength: 200, size: 16,
      onkeydown: (event) => {
        if (event.key === "Enter") choose(input.value.trim());
        if (event.key === "Escape") input.blur();
        event.stopPropagation();
      } });
    const known = [...new Set([...names(), ...about.labels])];
    side.replaceChildren(...[
      h("h2", {}, "So far"),
      state.accuracy === null ? h("p", { class: "quiet" }, state.classes.length ? "A few more labels, and their accuracy will show here." : "Nothing is labelled by hand yet.")
        : h("p", { role: "status" }, h("strong", { class: "figure" }, `${(100 * state.accuracy).toFixed(1)} %`), " Right on those labelled by hand, each by the others ",
          h("span", { class: "quiet" }, `(${(100 * state.interval[0]).toFixed(0)} to ${(100 * state.interval[1]).toFixed(0)}; they are no random sample)`)),
      curve(grown),
      state.classes.length ? table() : null].filter(Boolean));
    if (!one) {
      stage.replaceChildren(empty("Nothing is left", "Every picture is labelled by hand or passed over."), side);
      return;
    }
    stage.replaceChildren(
      h("section", { class: "subject", "aria-label": "What is it?" },
        image(one.row, { class: "large", alt: one.id }, "full"),
        h("p", { class: "quiet" }, one.id, one.guess ? [" · the votes say ", h("strong", {}, one.guess), ` (${Math.round(100 * one.confidence)} %)`] : null),
        names().length ? h("div", { class: "classes" }, ...names().map((name, place) => h("button", { type: "button", class: name === one.guess ? "guess" : "", onclick: () => choose(name) },
          place < 9 ? h("kbd", {}, String(place + 1)) : null, name))) : null,
        h("div", { class: "bar" }, input, h("datalist", { id: "known" }, ...known.map((value) => h("option", { value }))),
          h("button", { type: "button", class: "main", onclick: () => choose(input.value.trim()) }, "Label"),
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
    h("a", { class: "button", href: "api/labels.csv", download: "labels.csv" }, "Save all labels")),
  stage];
}
