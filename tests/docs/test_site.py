"""The site: a page per method and room, made from what is stored; escaped; complete; nothing from elsewhere."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pages(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import site_pages

    return site_pages


def test_every_method_and_room_has_a_page_in_the_navigation(pages):
    made, nav = pages.made(ROOT), json.dumps(pages.navigation(ROOT))
    named = [f"methods/{e['name']}.md" for e in pages.methods()] + [
        f"papers/{room}.md" for room in pages.ABOUT
    ]
    assert len(named) > 24 and all(n in made and f'"{n}"' in nav for n in named)
    written = {p.name for p in (ROOT / "docs").glob("*.md")}
    assert all(f'"{n}"' in nav for n in written) and not written & made.keys()


def test_a_method_page_has_docstring_choices_options_and_papers(pages):
    entry = next(e for e in pages.methods() if e["name"] == "ia3")
    page = pages.method_page(entry, [])
    for part in (
        "<dt>place</dt>",
        "<dt>signal</dt>",
        '<h3><a href="#S294">',
        'scope="row"><code>targets</code>',
    ):
        assert part in page
    assert pages.text(entry["doc"].splitlines()[0]) in page


def test_a_room_page_has_every_row(pages):
    page = pages.room_page("weights")
    assert page.count("<article") == 28 and "proposed check" in page


def test_what_rows_and_docstrings_say_is_escaped(pages, monkeypatch):
    bad = "<script>alert(1)</script> [x](javascript:1) **b** `c`\n\n# head"
    row = pages.rows()[0].model_copy(update={"title": bad, "claim": bad, "check": bad, "system": bad})
    assert "<script" not in pages.paper(row, None) and "\n\n#" not in pages.paper(row, None)
    assert "<script" not in pages.docstring(bad) and "<script" not in pages.docstring(bad + "  aligned")
    assert not re.search(r"[<*\[`#](?!\d)", pages.words(bad))


def test_figures_of_a_bench_belong_to_the_methods_that_it_names(pages, tmp_path):
    (tmp_path / "bench" / "results").mkdir(parents=True)
    (tmp_path / "bench" / "step.py").write_text('"""LoRA rank 8 beside <peft>: seconds.\n\nMore: ia3."""\n')
    figure = {"name": "step", "ours": 1.0, "peer": 2, "ratio": 0.5, "limit": 0.4, "peer_version": "peft <0>"}
    (tmp_path / "bench" / "results" / "step.json").write_text(json.dumps(figure))
    (bench,) = pages.figures.benches(tmp_path)
    assert bench.names("lora") and not bench.names("ia3") and not bench.names("lor")
    table = pages.figures.table([bench])
    assert 'class="fails"' in table and "<td>0.5</td>" in table and "peft &lt;0&gt;" in table


def test_the_site_is_built_whole_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    built = tmp_path / "site"
    found = {p.relative_to(built).as_posix(): p.read_text(encoding="utf-8") for p in built.rglob("*.html")}
    assert {
        "index.html",
        "tutorial.html",
        "methods/lora.html",
        "papers/weights.html",
        "papers/all.html",
    } <= found.keys()
    for name, source in found.items():
        assert not re.search(r"""(?:src=|<link[^>]*href=|url\()["']?(?:https?:)?//""", source), name
        assert "Content-Security-Policy" in source, name
        for target in re.findall(r'(?:href|src)="([^"#:]+)(?:#[^"]*)?"', source):
            assert ((built / name).parent / target).exists(), f"{name} -> {target}"
    assert (built / "js" / "index.js").read_text(encoding="utf-8").startswith("window.PAGES = [[")
    assert not any("//" in p.read_text() and "http" in p.read_text() for p in built.rglob("*.css"))


def test_the_page_of_prompts_names_every_method_carrier_source_and_start_of_the_family():
    """What the index and the registry have, the page has."""
    import luthier as lt
    from luthier.host.part import Source, Start

    said = (ROOT / "docs" / "prompts.md").read_text(encoding="utf-8")
    lt.methods.load_all()
    folders = ("prompts", "prefixes", "states")
    names = [n for n, e in lt.methods.entries().items() if e["module"].split(".")[2] in folders]
    assert len(names) > 10 and not [n for n in names if n != "prompt" and f"| `{n}` |" not in said]
    from luthier.host.options import known
    from luthier.methods.prompts.prompt import CARRIERS

    assert not [c for c in CARRIERS if f"| `{c}` |" not in said]
    ours = {n: c for kind in (Source, Start) for n, c in known(kind).items()}
    ours = {
        n
        for n, c in ours.items()
        if c.__module__.startswith(("luthier.sources", "luthier.starts", "luthier.methods"))
    }
    elsewhere = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    assert not [n for n in ours - {"zero", "pretrained"} if f"`{n}`" not in said + elsewhere]


def test_the_page_of_weights_names_every_low_rank_method_and_its_starts():
    import luthier as lt
    from luthier.host.options import known
    from luthier.host.part import Start

    said = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    lt.methods.load_all()
    entries = {n: e for n, e in lt.methods.entries().items() if e["module"].split(".")[2] == "low_rank"}
    lines = {n: next(line for line in said.splitlines() if line.startswith(f"| `{n}` |")) for n in entries}
    assert len(entries) > 8
    assert not [n for n, e in entries.items() for paper in e["papers"] if paper not in lines[n]]
    starts = {e["start"].partition("(")[0] for e in entries.values()} - {"its own"}
    assert {"pissa", "eva"} < starts <= known(Start).keys()
    assert not [s for s in starts if f"| `{s}` |" not in said]


def test_the_page_of_weights_names_every_product_seeded_basis_transform_and_rotation():
    import luthier as lt

    said = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    folders = ("kronecker", "spectral", "orthogonal", "convolution")
    here = ("loha", "vera", "randlora")
    ours = {
        n: e for n, e in lt.methods.entries().items() if n in here or e["module"].split(".")[2] in folders
    }
    lines = {
        n: next(
            line for line in said.splitlines() if line.startswith("| `") and f"`{n}`" in line.split(" | ")[0]
        )
        for n in ours
    }
    assert len(ours) >= 10
    assert not [n for n, e in ours.items() for paper in e["papers"] if paper not in lines[n]]


def test_the_page_of_weights_names_every_adapter():
    import luthier as lt

    said = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    ours = {n: e for n, e in lt.methods.entries().items() if e["module"].split(".")[2] == "adapters"}
    lines = {n: next(line for line in said.splitlines() if line.startswith(f"| `{n}` |")) for n in ours}
    assert len(ours) >= 4
    assert not [n for n, e in ours.items() for paper in e["papers"] if paper not in lines[n]]


def test_the_page_of_weights_names_what_can_be_searched():
    import luthier as lt
    from luthier.selection.space import can_be_searched

    said = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    found = {n: e for n, e in lt.methods.entries().items() if can_be_searched(lt.methods.get(n))}
    assert set(found) == {"glora", "noah"}
    for name, entry in found.items():
        line = next(line for line in said.splitlines() if line.startswith(f"| `{name}` |"))
        assert entry["papers"][0] in line


def test_the_page_of_weights_names_every_edit_of_representations():
    import luthier as lt

    said = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    ours = {
        n: e
        for n, e in lt.methods.entries().items()
        if e["module"].split(".")[2] == "representation" or n in ("p_adapter", "p_laplacian")
    }
    lines = {n: next(line for line in said.splitlines() if line.startswith(f"| `{n}` |")) for n in ours}
    assert len(ours) >= 7
    assert not [n for n, e in ours.items() for paper in e["papers"] if paper not in lines[n]]
