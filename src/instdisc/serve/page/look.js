// One picture and what is like it; a search by several, or by a picture of one's own.
import { ask, cell, empty, h, image, link, post, say, walkable, words } from "./dom.js";

function hits(results, { near = [], far = [], upload } = {}) {
  const to = (like, unlike) => { location.hash = link("search", { like: like.join(","), unlike: unlike.join(","), upload }); };
  const list = results.map((one) => h("li", {}, cell(one, { score: one.score }),
    h("div", { class: "small-bar" },
      h("button", { type: "button", title: "More like this one too", "aria-label": `More like ${one.id}`, onclick: () => to([...near, one.row], far) }, "+ more"),
      h("button", { type: "button", title: "Less like this one", "aria-label": `Less like ${one.id}`, onclick: () => to(near, [...far, one.row]) }, "− less"))));
  return walkable(h("ul", { class: "few", "aria-label": "Most alike first" }, ...list));
}

const holes = (count) => h("div", { class: "few", "aria-hidden": "true" }, ...Array.from({ length: count }, () => h("div", { class: "cell" })));

// The picture is there at once; its neighbours come when the vectors are.
export async function picture(row, about, again) {
  if (!Number.isInteger(row)) throw new Error("No picture of the collection has this number.");
  const one = await ask(`api/pictures/${row}`);
  const choose = async (label) => {
    try {
      await post("api/labels", { rows: [row], label });
      say(label === null ? "The label was taken away." : `Labelled ${label}.`);
      await again();
    } catch (error) { say(error.message, true); }
  };
  const input = h("input", { list: "names", placeholder: "label by hand", size: 14, "aria-label": "Label by hand", maxLength: 200,
    onkeydown: (event) => { if (event.key === "Enter" && input.value.trim()) choose(input.value.trim()); } });
  const found = h("div", { "aria-busy": "true" }, holes(24));
  const content = [h("div", { class: "one" },
    h("section", { class: "subject", "aria-label": "The picture" },
      image(row, { class: "large", alt: words(one) }, "full"),
      h("dl", {}, h("dt", {}, "id"), h("dd", {}, one.id), one.path === one.id ? null : [h("dt", {}, "path"), h("dd", {}, one.path)],
        one.label ? [h("dt", {}, "label"), h("dd", {}, h("a", { href: link("", { label: one.label }) }, one.label), one.hand ? " (by hand)" : "")] : null),
      h("div", { class: "bar" }, input, h("datalist", { id: "names" }, ...about.labels.map((value) => h("option", { value }))),
        h("button", { type: "button", onclick: () => input.value.trim() && choose(input.value.trim()) }, "Label"),
        one.hand ? h("button", { type: "button", onclick: () => choose(null) }, "Take it away") : null)),
    h("section", { "aria-label": "Most like it" },
      h("div", { class: "bar" }, h("h1", {}, "Most like it"), h("span", { class: "quiet" }, "by cosine: 1 is the same")),
      found))];
  const filled = ask(`api/neighbours/${row}?count=48`).then(({ results }) => {
    found.replaceChildren(results.length ? hits(results, { near: [row] }) : h("p", { class: "quiet" }, "There is no other picture."));
  }, (error) => {
    found.replaceChildren(h("p", {}, error.message), h("button", { type: "button", onclick: again }, "Try again"));
  }).then(() => found.removeAttribute("aria-busy"));
  await Promise.race([filled, new Promise((go) => { setTimeout(go, 150); })]); // mostly they are there before an eye sees a gap
  return content;
}

export async function search(parameters) {
  const numbers = (name) => (parameters.get(name) ?? "").split(",").filter(Boolean).map(Number);
  const near = numbers("like"), far = numbers("unlike"), upload = parameters.get("upload") ?? undefined;
  const asked = { like: near.join(","), unlike: far.join(",") };
  if (upload) asked.upload = upload;
  if (!near.length && !upload) {
    return [empty("Search", "Open a picture and press “+ more” below another to search by both. Or drop, paste or choose a picture of your own.",
      h("a", { class: "button", href: "#/" }, "All pictures"))];
  }
  const found = await ask(`api/search?${new URLSearchParams({ ...asked, count: 60 })}`);
  const without = (rows, row) => rows.filter((one) => one !== row);
  const figure = (row, unlike) => h("figure", { class: unlike ? "unlike" : "" },
    h("a", { href: link(`picture/${row}`) }, image(row, { alt: `${unlike ? "less" : "more"} like picture ${row}` })),
    h("figcaption", {}, unlike ? "− less like" : "+ like", h("button", { type: "button", "aria-label": "Take it out of the query", title: "Take it out of the query",
      onclick: () => { location.hash = link("search", { like: without(near, unlike ? -1 : row).join(","), unlike: without(far, unlike ? row : -1).join(","), upload }); } }, "×")));
  return [h("h1", {}, near.length + Boolean(upload) > 1 ? "Like all of these" : "Like this one"),
    h("div", { class: "asked", role: "group", "aria-label": "The query" },
      upload ? h("figure", {}, h("img", { src: `api/uploads/${encodeURIComponent(upload)}`, alt: "your picture" }), h("figcaption", {}, "your picture")) : null,
      ...near.map((row) => figure(row, false)), ...far.map((row) => figure(row, true))),
    found.results.length ? hits(found.results, { near, far, upload }) : h("p", { class: "quiet" }, "There is no other picture.")];
}
