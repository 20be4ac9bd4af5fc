// Filters the rows that stand in the page; the address keeps the filters.
const ROWS = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const FACETS = ["status", "figure", "room", "kind", "family", "modality"];
const SAID = { figure: { none: "no check yet", holds: "holds", fails: "does not hold" } };
const ORDER = { status: ["works", "partial", "guide", "absent"], figure: ["holds", "fails", "none"] };
const fold = (s) => s.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
const has = (row, facet, value) => (Array.isArray(row[facet]) ? row[facet].includes(value) : row[facet] === value);

document.documentElement.classList.add("script");
for (const row of ROWS) {
  row.element = $(row.id);
  row.words = fold(row.element.textContent);
}

const values = (facet) => {
  const found = [...new Set(ROWS.flatMap((r) => r[facet]))];
  return ORDER[facet] ? ORDER[facet].filter((v) => found.includes(v)) : found.sort();
};
for (const facet of FACETS) {
  const menu = $(facet);
  menu.append(new Option("all", ""));
  for (const value of values(facet)) menu.append(new Option(value, value));
  menu.addEventListener("change", show);
}

const list = $("list"), nothing = $("nothing");
$("order").addEventListener("change", () => { arrange(); show(); });

// The page comes in the order of what is delivered; by id is the other.
function arrange() {
  const rows = [...ROWS];
  if ($("order").value === "id") rows.sort((a, b) => (a.id < b.id ? -1 : 1));
  list.append(...rows.map((r) => r.element), nothing);
}

function chosen() {
  const words = fold($("q").value).split(/\s+/).filter(Boolean);
  const picked = FACETS.map((f) => [f, $(f).value]).filter(([, v]) => v);
  return { words, picked };
}

// A row passes every filter; the counts of a menu leave out that menu's own choice.
function passes(row, { words, picked }, except) {
  return words.every((w) => row.words.includes(w)) && picked.every(([f, v]) => f === except || has(row, f, v));
}

function show() {
  const asked = chosen();
  let n = 0;
  for (const row of ROWS) {
    const keep = passes(row, asked);
    row.element.hidden = !keep;
    n += keep;
  }
  $("shown").textContent = n === ROWS.length ? `${n} rows` : `${n} of ${ROWS.length} rows`;
  $("nothing").hidden = n > 0;
  for (const facet of FACETS) {
    const open = ROWS.filter((r) => passes(r, asked, facet));
    $(facet).classList.toggle("on", $(facet).value !== "");
    for (const option of $(facet).options) {
      if (!option.value) continue;
      const count = open.reduce((sum, r) => sum + has(r, facet, option.value), 0);
      option.textContent = `${SAID[facet]?.[option.value] ?? option.value} (${count})`;
    }
  }
  for (const button of document.querySelectorAll("#rooms button"))
    button.setAttribute("aria-pressed", String(button.dataset.room === $("room").value));
  const kept = new URLSearchParams(asked.picked);
  if ($("order").value) kept.set("order", $("order").value);
  if ($("q").value.trim()) kept.set("q", $("q").value.trim());
  const address = kept.size ? "#?" + kept : location.hash.startsWith("#?") ? "#" : location.hash;
  if (address !== location.hash) history.replaceState(null, "", address || "#");
}

function restore() {
  if (!location.hash.startsWith("#?")) return show();
  const kept = new URLSearchParams(location.hash.slice(2));
  $("q").value = kept.get("q") ?? "";
  $("order").value = kept.get("order") === "id" ? "id" : "";
  arrange();
  for (const facet of FACETS) {
    const value = kept.get(facet) ?? "";
    $(facet).value = [...$(facet).options].some((o) => o.value === value) ? value : "";
  }
  show();
}

function clear() {
  for (const id of ["q", ...FACETS]) $(id).value = "";
  show();
}

let waiting;
$("q").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(show, 90); });
$("filter").addEventListener("submit", (e) => { e.preventDefault(); show(); });
$("filter").addEventListener("reset", () => setTimeout(() => { arrange(); show(); }));
for (const button of document.querySelectorAll("#rooms button"))
  button.addEventListener("click", () => {
    $("room").value = button.getAttribute("aria-pressed") === "true" ? "" : button.dataset.room;
    show();
  });
addEventListener("hashchange", () => {
  const row = ROWS.find((r) => "#" + r.id === location.hash);
  if (row && row.element.hidden) { clear(); location.hash = "#" + row.id; }
  else restore();
});

function step(by) {
  const open = [...document.querySelectorAll(".row:not([hidden])")];
  const now = document.activeElement.closest?.(".row");
  const at = open.indexOf(now);
  const next = open[at < 0 ? (by > 0 ? 0 : open.length - 1) : at + by];
  if (next) { next.focus({ preventScroll: true }); next.scrollIntoView({ block: "nearest" }); }
}
addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.key === "Escape") { clear(); document.activeElement.blur(); return; }
  if (e.target.closest("input, select, textarea")) return;
  if (e.key === "/") { $("q").focus(); $("q").select(); }
  else if (e.key === "j") step(1);
  else if (e.key === "k") step(-1);
  else if (e.key === "o") {
    const more = document.activeElement.closest(".row")?.querySelector("details");
    if (!more) return;
    more.open = !more.open;
  } else return;
  e.preventDefault();
});
restore();
