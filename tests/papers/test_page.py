"""The page of all papers: every row in it, nothing that data says acts, nothing is loaded, filters over the same rows."""

import base64
import hashlib
import json
from html.parser import HTMLParser

import pytest

from luthier.papers import page as module
from luthier.papers.catalogue import row, rows
from luthier.papers.measured import of_record


class Elements(HTMLParser):
    def __init__(self, source):
        super().__init__()
        self.elements, self.raw, self.text, self.inside = [], {"script": [], "style": []}, [], None
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside = tag if tag in self.raw else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, text):
        (self.raw[self.inside] if self.inside else self.text).append(text)


def record(holds: bool, **changed):
    claim = {
        "id": "beats",
        "statement": "It beats the probe.",
        "threshold": "ia3 - probe above 0",
        "figure": 0.04125 if holds else -0.25,
        "low": -0.3,
        "high": 0.125,
        "holds": holds,
    }
    base = {
        "id": "S294",
        "statement": "A statement that was measured.",
        "claim": "beats",
        "holds": holds,
        "fresh": holds,
    }
    about = {
        "data": "builtin:pydocs",
        "against": "probe",
        "notes": "",
        "seconds": 93.25,
        "date": "2026-11-21",
    }
    return of_record({**base, **about, "versions": {"torch": "2"}, "claims": [claim], **changed})


@pytest.fixture
def stored(monkeypatch):
    kept: dict = {}
    monkeypatch.setattr(module, "measured", kept.get)
    return kept


def test_every_row_stands_in_the_page_with_claim_and_check(stored):
    parsed = Elements(module.page(rows()))
    ids = [a["id"] for t, a in parsed.elements if t == "article"]
    assert sorted(ids) == [r.id for r in rows()] and len(ids) == 374
    text = " ".join("".join(parsed.text).split())
    assert all(
        " ".join(part.split()) in text for r in rows() for part in (r.title, r.claim, r.check, r.mechanism)
    )
    facets = json.loads(parsed.raw["script"][0])
    assert [f["id"] for f in facets] == ids and {f["figure"] for f in facets} == {"none"}


def test_rows_that_are_delivered_come_first(stored):
    order = [a["id"] for t, a in Elements(module.page(rows())).elements if t == "article"]
    states = [list(module.STATES).index(row(i).status) for i in order]
    assert states == sorted(states)


@pytest.mark.parametrize(("holds", "said"), [(True, "holds"), (False, "does not hold")])
def test_a_stored_figure_is_shown_with_what_was_asked(stored, holds, said):
    stored["S294"] = record(holds)
    parsed = Elements(module.page([row("S294"), row("S001")]))
    text = " ".join("".join(parsed.text).split())
    for part in (
        said,
        "0.04125" if holds else "-0.25",
        "[-0.3, 0.125]",
        "asked ia3 - probe above 0",
        "2 of 374 papers",
    ):
        assert part in text
    assert ("code has changed" in text) is not holds
    assert "A statement that was measured." in text and row("S294").check.split(";")[0] in text
    assert [f["figure"] for f in json.loads(parsed.raw["script"][0])] == [
        "holds" if holds else "fails",
        "none",
    ]


def test_what_data_says_stays_text(stored):
    bad = '</script><img src=x onerror=alert(1)> "q" \x1b[2J \u202e'
    stored["S294"] = record(True, statement=bad, notes=bad, data=bad)
    hostile = row("S294").model_copy(
        update=dict.fromkeys(("title", "system", "claim", "mechanism", "family", "code"), bad)
    )
    source = module.page([hostile])
    parsed = Elements(source)
    assert not any(
        t == "img" or any(k.startswith("on") or k == "style" for k in a) for t, a in parsed.elements
    )
    assert "<img src=x onerror=alert(1)>" in "".join(parsed.text) and len(parsed.raw["script"]) >= 2
    assert json.loads(parsed.raw["script"][0])[0]["family"][0] == bad
    assert "\x1b" not in source and "\u202e" not in source


def test_nothing_is_loaded_and_only_its_own_script_runs(stored):
    source = module.page(rows()[:3])
    parsed = Elements(source)
    assert not any(
        k in ("src", "action") or (k == "href" and not v.startswith("#"))
        for _, a in parsed.elements
        for k, v in a.items()
    )
    policy = next(
        a["content"] for _, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    for text in ("".join(parsed.raw["script"][1:]), "".join(parsed.raw["style"])):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy


def test_every_control_that_the_script_asks_for_is_there(stored):
    import re

    parsed = Elements(module.page(rows()[:3]))
    asked = set(re.findall(r'\$\("(\w+)"\)', "".join(parsed.raw["script"][1:])))
    ids = [a["id"] for _, a in parsed.elements if "id" in a]
    assert asked <= set(ids) and len(ids) == len(set(ids))
