// Labelling by keyboard, one by one.
import { ask, button, choice, complain, empty, fill, get, goTo, h, hint, image, inBar, inTurn, labelField, link, number, percent, pixels, quiet, room, walkable, way } from "./dom.js";
import { give, onLabels, rename, undo, undoFirst } from "./journal.js";

// Proposals asked for at once; with fewer left, the next are asked for.
const BATCH = 12, FEW = 4;

// In the order of the classes; letters that do something else are left out.
const KEYS = [..."1234567890abcdefghijkmopqrtvwyz"];

// Their keys, how many pictures have each, and other names for them.
function classes(state) {
  const at = (one) => KEYS[state.order.indexOf(one.label)];
  const line = (one) => h("tr", h("td", at(one) && h("kbd", at(one)), " ", one.label),
    h("td", h("a", { href: link("", { label: one.label, by: "you" }), label: `${one.label}: ${number(one.hand)} by you` }, number(one.hand))),
    h("td", one.suggested ? h("a", { href: link("", { label: one.label, by: "suggested", sort: "sure" }), label: `${one.label}: ${number(one.suggested)} suggested` }, number(one.suggested)) : "0"));
  const table = walkable(h("table", h("thead", h("tr", h("th", "class"), h("th", "by you"), h("th", "suggested"))), h("tbody", state.classes.map(line))), "a");
  let chosen = state.classes[0].label;
  const input = labelField("New name of the class", (to) => rename(chosen, to).catch(complain), { placeholder: "New name, or another class", size: 25 });
  const choose = choice("rename", state.classes.map((one) => [one.label, one.label]), "", (value) => { chosen = value; });
  return h("div.stack", table, h("div.bar.renaming", choose, input, h("button", { title: "The name of another class merges them", onclick: input.given }, "Rename or merge")),
    h("p.quiet", `${number(state.none)} pictures have neither a label by you nor a suggestion of 50 % or more.`));
}

export async function labelling({ parameters, keep, about }) {
  const by = parameters.by ?? "mixed";
  let state = await ask("api/labels");
  let queue = [], done = [], coming;
  // Skipped, or labelled since proposals were asked for.
  const passed = new Set();
  const stage = h("div.one"), side = h("section.side", { label: "Progress" });

  const more = () => {
    coming ??= get("api/proposals", { count: Math.min(100, BATCH + queue.length + passed.size), by }).then(({ pictures }) => {
      const there = new Set(queue.map((one) => one.row));
      queue.push(...pictures.filter((one) => !passed.has(one.row) && !there.has(one.row)));
    }).finally(() => { coming = undefined; });
    return coming;
  };
  let own = false;
  const turn = inTurn(), act = (work) => turn(() => Promise.resolve().then(work).catch(complain).then(draw)).catch(complain);
  const choose = (label) => act(async () => {
    const one = queue[0];
    if (!one || !label) return;
    // The answer is the news.
    own = true;
    try { state = await give([one.row], label); } finally { own = false; }
    passed.add(one.row);
    done.push(one);
    queue.shift();
  });
  const skip = () => act(async () => {
    if (!queue.length) return;
    passed.add(queue[0].row);
    done.push({ ...queue.shift(), skipped: true });
  });
  const back = (one) => {
    passed.delete(one.row);
    queue = [one, ...queue.filter((other) => other.row !== one.row)];
  };
  // A skip is nothing that the server knows.
  keep(undoFirst(async () => {
    if (!done.at(-1)?.skipped) return false;
    back(done.pop());
    await draw();
    return true;
  }));
  onLabels(keep, ({ undone }) => own || act(async () => {
    state = await ask("api/labels");
    const rows = new Set(undone);
    for (const one of done.filter((other) => rows.has(other.row))) back(one);
    done = done.filter((one) => !rows.has(one.row));
  }));

  const draw = async () => {
    if (!queue.length) await more();
    // Asked for again, and told, when none is left.
    else if (queue.length <= FEW) more().catch(() => {});
    const one = queue[0];
    const input = labelField("Type a label", choose, { keys: "n" });
    fill(side,
      h("h2", "Progress"),
      state.accuracy === null ? h("p.quiet", state.classes.length ? "A few more labels, and their accuracy will show here." : "Nothing is labelled by hand yet.")
        : h("p", h("strong.figure", `${(100 * state.accuracy).toFixed(1)} %`), " Estimated accuracy, on the pictures that you labelled one by one ",
          quiet(`(95 %: ${(100 * state.interval[0]).toFixed(0)} to ${(100 * state.interval[1]).toFixed(0)}; suggested pictures are no random sample)`)),
      state.classes.length && classes(state));
    if (!one) {
      fill(stage, empty("All done", "Every picture is labelled by hand or skipped."), side);
      return;
    }
    fill(stage,
      h("section.subject", { label: "What is it?" },
        image(one.row, { class: "large", alt: one.id }, "full"),
        h("p.quiet", one.id, one.guess && [" · Suggested: ", button(one.guess, "Enter", () => choose(one.guess), { class: "chip", title: "As suggested" }), ` (${percent(one.confidence)})`]),
        state.order.length > 0 && walkable(h("div.classes", { group: "Classes" }, state.order.map((name, place) => h("button", { class: name === one.guess ? "guess" : "",
          keys: KEYS[place], onclick: () => choose(name) }, KEYS[place] && h("kbd", { mute: "true" }, KEYS[place]), name))), "button"),
        walkable(inBar(input,
          h("button.main", input.given, "Label"),
          button("Skip", "s", skip),
          // After what was pressed before.
          button("Undo", "u", () => act(undo))), "button"),
        hint()),
      side);
    // Once it is on the page.
    if (!state.order.length) setTimeout(() => input.focus());
    for (const next of queue.slice(1, 4)) new Image().src = pixels(next.row, "full");
  };

  await draw();
  return [inBar(h("h1", "Label the collection"), room(),
    choice("order", [["mixed", "mixed"], ["covered", "representative"], ["uncertain", "uncertain"]], by, (value) => goTo("label", { by: value })),
    way("#/dozen", "By the dozen"), h("a.button", { href: "api/labels.csv", download: "labels.csv" }, "Export labels (CSV)")),
  stage];
}
