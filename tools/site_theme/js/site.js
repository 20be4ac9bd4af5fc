// Search over every page's sections, without a server: the index is a script.
"use strict";
const box = document.getElementById("find"), out = document.getElementById("found"), root = document.body.dataset.root;
const fold = (s) => s.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
let pages;
function search() {
  const words = fold(box.value).split(/\s+/).filter(Boolean);
  pages ??= (window.PAGES ?? []).map(([where, title, text]) => ({ where, title, text, t: fold(title), b: fold(text) }));
  out.replaceChildren();
  out.hidden = !words.length;
  if (!words.length) return;
  const score = (p) => words.reduce((s, w) => (s < 0 ? s : p.t.includes(w) ? s + 10 - p.t.length / 200 : p.b.includes(w) ? s + 1 : -1), 0);
  const hits = pages.map((p) => [score(p), p]).filter(([s]) => s > 0).sort((a, b) => b[0] - a[0]).slice(0, 12);
  for (const [, p] of hits) {
    const link = document.createElement("a"), item = document.createElement("li"), small = document.createElement("small");
    link.href = (root + "/" + p.where).replace("//", "/");
    link.textContent = p.title;
    const at = Math.max(0, p.b.indexOf(words[0]) - 30);
    small.textContent = p.text.slice(at, at + 90);
    link.append(small);
    item.append(link);
    out.append(item);
  }
  if (!hits.length) out.append(Object.assign(document.createElement("li"), { textContent: "Nothing found." }));
}
box.addEventListener("input", search);
document.addEventListener("keydown", (e) => {
  if (e.key === "/" && !e.target.closest("input") && !e.ctrlKey && !e.metaKey && !e.altKey) { box.focus(); e.preventDefault(); }
  else if (e.key === "Escape") { box.value = ""; search(); }
  else if (e.key === "Enter" && e.target === box) out.querySelector("a")?.click();
});
if (matchMedia("(max-width: 800px)").matches) document.querySelector(".menu").open = false;
document.querySelector("aside [aria-current]")?.scrollIntoView({ block: "nearest" });
