"""The pages of the site that are made: home, methods, rooms of papers, figures. Text in, Markdown and HTML out."""

import re
from pathlib import Path
from typing import Any

import site_figures as figures

from luthier.data.html import palette, text
from luthier.methods import entries
from luthier.papers.catalogue import Row, rows
from luthier.papers.measured import Measured, measured
from luthier.papers.page import STATES, page
from luthier.papers.rooms import ABOUT

FIRST = ("tutorial.md", "adding_a_method.md")
LAST = ("architecture.md", "limits.md")
COPIED = {"contributing.md": "CONTRIBUTING.md", "changes.md": "CHANGELOG.md"}
TEXTS = {"LICENSE.txt": "LICENSE", "NOTICE.txt": "NOTICE"}


def methods() -> list[dict[str, Any]]:
    """The index's entries of what can be chosen as a method, by place and name."""
    whole = [e for e in entries().values() if e["place"] != "output"]
    return sorted(whole, key=lambda e: (e["place"], e["name"]))


def navigation(root: Path) -> list[Any]:
    """MkDocs' nav: guides that exist in docs/, then what is made."""
    guides = sorted(p.name for p in (root / "docs").glob("*.md") if p.name not in (*FIRST, *LAST))
    places: dict[str, list[Any]] = {}
    for e in methods():
        places.setdefault(e["place"], []).append({e["name"]: f"methods/{e['name']}.md"})
    return [
        {"Home": "index.md"},
        *({_title(root, n): n} for n in (*FIRST, *guides) if (root / "docs" / n).is_file()),
        {"Methods": [{"All methods": "methods/index.md"}, *(e for group in places.values() for e in group)]},
        {"Papers": [{"All rooms": "papers/index.md"}, *({r: f"papers/{r}.md"} for r in ABOUT)]},
        {"Figures": "figures.md"},
        {"The house": [
            *({_title(root, n): n} for n in LAST if (root / "docs" / n).is_file()),
            {"Contributing": "contributing.md"},
            {"Changes": "changes.md"},
        ]},
    ]  # fmt: skip


def _title(root: Path, name: str) -> str:
    found = re.search(r"^# (.+)$", (root / "docs" / name).read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else Path(name).stem.replace("_", " ")


def made(root: Path) -> dict[str, str]:
    """{name below the site: content} of everything that is not written by hand in docs/."""
    found = figures.benches(root)
    result = {"index.md": relinked((root / "README.md").read_text(encoding="utf-8"))}
    result |= {n: relinked((root / source).read_text(encoding="utf-8")) for n, source in COPIED.items()}
    result |= {n: (root / source).read_text(encoding="utf-8") for n, source in TEXTS.items()}
    result |= {
        "methods/index.md": methods_page(),
        "papers/index.md": rooms_page(),
        "papers/all.html": page(rows()),
    }
    result |= {f"methods/{e['name']}.md": method_page(e, found) for e in methods()}
    result |= {f"papers/{room}.md": room_page(room) for room in ABOUT}
    result["figures.md"] = figures_page(found)
    result["css/palette.css"] = palette()
    return result


def relinked(source: str) -> str:
    """A document of the repository's root, with links that lead to the site's pages."""
    source = source.replace("](docs/", "](")
    for name, origin in {**COPIED, **TEXTS}.items():
        source = source.replace(f"]({origin})", f"]({name})")
    return source


def words(said: str) -> str:
    """What data says, for a line of Markdown: neither markup nor HTML can begin in it."""
    return re.sub(r"[^\w\s.,;:()'%/]", lambda m: f"&#{ord(m[0])};", text(said).replace("&#x27;", "'"))


def docstring(doc: str) -> str:
    """A method's docstring as HTML: prose flows, what is aligned in columns or indented keeps its form."""
    out = []
    for block in re.split(r"\n\s*\n", doc.strip("\n")):
        lines = block.splitlines()
        aligned = any(re.search(r"\S {2,}\S", line) or line.startswith("  ") for line in lines)
        if aligned:
            out.append(f"<pre class=doc>{'<br>'.join(text(line) for line in lines)}</pre>")
        else:
            out.append("<p>" + re.sub(r"`([^`]+)`", r"<code>\1</code>", text(" ".join(lines))) + "</p>")
    return "\n".join(out) + "\n"


def facts(pairs: dict[str, str]) -> str:
    """A list of definitions; the values are HTML."""
    inside = "".join(f"<dt>{text(k)}</dt><dd>{v}</dd>" for k, v in pairs.items() if v)
    return f'<dl class="facts">{inside}</dl>\n'


def method_page(e: dict[str, Any], found: list[figures.Bench]) -> str:
    """One method: its docstring, five choices, options, papers, and figures."""
    choices = {
        "place": text(e["place"]),
        "source": text(e["source"]),
        "start": text(e["start"]) + (" (outputs begin as the base's)" if e["identity_start"] else ""),
        "selection": f"<code>{text(e['targets'])}</code>" if e["targets"] else "its own",
        "signal": text(e["signal"]),
        "learning rate": figures.number(e["rate"]),
        "merges": "yes" if e["mergeable"] else "no",
        "phases": text(", ".join(e["phases"])),
        "in Python": f"<code>luthier.methods.{text(e['class'])}</code>",
    }
    parts = [f"# {e['name']}\n", docstring(e["doc"]), "## Its five choices\n", facts(choices)]
    if e["options"]:
        parts += [
            "## Options\n",
            _options(e),
            f"    luthier fit --method {e['name']} --set {e['options'][0]['name']}=... ...\n",
        ]
    sources = [r for r in rows() if r.id in e["papers"] or r.entry == e["name"]]
    if sources:
        parts += ["## Papers\n", *(paper(r, measured(r.id)) for r in sources)]
    own = [b for b in found if b.names(e["name"])]
    if own:
        parts += ["## Beside its peers\n", figures.table(own)]
    if not own and not any(measured(r.id) for r in sources):
        parts.append("No figures of this method are stored yet.\n")
    return "\n".join(parts)


def _options(e: dict[str, Any]) -> str:
    def default(o: dict[str, Any]) -> str:
        value = o["default"]
        return (
            "(required)"
            if o["required"]
            else "none"
            if value is None
            else str(value).lower()
            if isinstance(value, bool)
            else str(value)
        )

    lines = [
        f'<tr><th scope="row"><code>{text(o["name"])}</code></th><td>{text(o["type"])}</td>'
        f"<td>{text(default(o))}</td><td>{text(o['meaning'])}</td></tr>"
        for o in e["options"]
    ]
    return figures.grid(("option", "type", "default", "meaning"), lines)


def paper(r: Row, found: Measured | None) -> str:
    """A row of the catalogue: status, what the paper reports, its check, the figure."""
    name = f"{r.system}: {r.title}" if r.system and not r.title.startswith(r.system) else r.title
    verdict = "no check has stored figures yet"
    if found:
        state = "holds" if found.holds else "fails"
        stale = "" if found.fresh else " The code has changed since it was measured."
        verdict = (
            f'<b class="{state}">{"holds" if found.holds else "does not hold"}</b>: {text(found.claim)} {text(found.figure)} '
            f"{text(found.spread)}, asked {text(found.threshold)} "
            f"({sum(c.holds for c in found.claims)} of {len(found.claims)} claims hold; {text(found.date)}).{stale}"
        )
    entry = f" <code>{text(r.entry)}</code>" if r.entry else ""
    listed = facts({
        "paper reports": text(r.claim),
        "check" if found else "proposed check": text(found.statement if found else r.check),
        "measured here": verdict,
        "why partial": text(r.delivery.cause),
        "repeat it": f"<code>luthier check {text(r.id)}</code>" if found else "",
    })  # fmt: skip
    return (
        f'<article class="paper" id="{text(r.id)}"><h3><a href="#{text(r.id)}">{text(r.id)}</a> {text(name)}</h3>'
        f'<p><span class="pill {r.status}">{r.status}</span>{entry} <span class="muted">{text(r.kind)}, {text(r.family)}</span></p>'
        f"{listed.strip()}</article>\n"
    )


def methods_page() -> str:
    """All methods, by place."""
    lines = [
        f'<tr><th scope="row"><a href="{text(e["name"])}.html">{text(e["name"])}</a></th><td>{text(e["summary"])}</td>'
        f"<td>{text(e['place'])}</td><td>{text(e['signal'])}</td><td>{text(', '.join(e['papers']))}</td></tr>"
        for e in methods()
    ]
    head = ("method", "what it is", "enters at", "trained by", "papers")
    return (
        f"# Methods\n\n{len(lines)} methods. `luthier methods` lists them too.\n\n{figures.grid(head, lines)}"
    )


def rooms_page() -> str:
    """The rooms of the catalogue, with counts by status."""
    lines = []
    for room, about in ABOUT.items():
        inside = [r for r in rows() if r.room == room]
        counts = "".join(f"<td>{sum(r.status == s for r in inside) or ''}</td>" for s in STATES)
        lines.append(
            f'<tr><th scope="row"><a href="{room}.html">{room}</a></th><td>{text(about)}</td><td>{len(inside)}</td>{counts}</tr>'
        )
    return (
        f"# Papers\n\nThe {len(rows())} papers of the catalogue, by room. "
        '<a href="all.html">All of them on one page</a>, to filter; <code>luthier papers --html</code> writes the same page.\n\n'
        + figures.grid(("room", "about", "papers", *STATES), lines)
    )


def room_page(room: str) -> str:
    """Every row of a room, what is delivered first."""
    order = list(STATES)
    inside = sorted((r for r in rows() if r.room == room), key=lambda r: (order.index(r.status), r.id))
    counts = ", ".join(f"{n} {s}" for s in STATES if (n := sum(r.status == s for r in inside)))
    return f"# {room}\n\n{words(ABOUT[room])}. {len(inside)} papers: {counts}.\n\n" + "\n".join(
        paper(r, measured(r.id)) for r in inside
    )


def figures_page(found: list[figures.Bench]) -> str:
    """Every stored figure beside a peer."""
    about = "".join(f"<dt><code>{text(b.name)}</code></dt><dd>{text(b.about)}</dd>" for b in found)
    return (
        "# Figures beside peers\n\nEach is measured interleaved with the peer in one process; every single value is in "
        "`bench/results/`. A ratio below one is better here.\n\n"
        f'{figures.table(found)}\n<dl class="facts">{about}</dl>\n'
    )
