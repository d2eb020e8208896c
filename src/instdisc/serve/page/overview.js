// What there is, what the views are made with, and one button for what is missing.
import { ask, cell, complain, count, fill, goTo, h, inBar, number, post, quiet, retry, room, underWay, walkable, way, working } from "./dom.js";

const prepare = (steps = null) => post("api/prepare", { steps });
export const scores = () => h("button", () => prepare(["outliers"]).then(() => goTo("overview"), complain), "Compute outlier scores");

const facts = (title, lines) => h("section.stack", h("h2", title), walkable(h("dl", lines.flatMap(({ title: name, view, text, ready }) => [
  h("dt", view === null ? name : h("a", { href: `#/${view}` }, name)), h("dd", ready === undefined ? text : [ready ? h("strong.good", "Ready") : h("strong", "Missing"), quiet(` ${text}`)])])), "a"));

export async function overview({ about, again }) {
  const few = h("div.few.strip"), parts = h("div.cards"), job = h("div.stack", quiet("Looking at what there is …"));
  const show = (known) => (state) => fill(parts, facts("Collection", known.collection), facts("Encoder", known.encoder), facts("Prepared", state.parts));
  const draw = (state, rows) => {
    const missing = state.parts.filter((one) => !one.ready).length;
    rows(state);
    fill(job, state.error && h("p", { role: "status" }, state.error), state.state === "computing" ? underWay("api/prepare", "Preparing", true, () => again().catch(complain), rows)
      : missing ? inBar(working("Prepare", async () => draw(await prepare(), rows), { class: "main" }), quiet(`${count(missing, "thing")} missing. Stop when you like: it goes on from there.`))
        : quiet("Everything is prepared."));
  };
  const begin = async () => {
    const known = await ask("api/overview");
    fill(few, known.pictures.map((one) => cell(one, { pick: false })));
    walkable(few);
    draw(await ask("api/prepare"), show(known));
  };
  begin().catch((error) => fill(job, h("p.lost", error.message), inBar(retry(again))));
  return [inBar(h("h1", "Overview"), quiet(`${number(about.pictures)} pictures. No file is ever changed or deleted.`), room(), way("#/", "Browse all")), few, job, parts];
}
