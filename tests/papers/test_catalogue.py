"""The catalogue: what is shipped, that it is read strictly, and what the search finds."""

import json
import re
import subprocess
import sys
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from luthier.errors import OptionError
from luthier.papers import catalogue
from luthier.papers.catalogue import Row, deliveries, find, row, rows

SYSTEMS = Path(__file__).parents[2] / ".." / "shared" / "systems"
FIELDS = [
    *("id title system kind family also modality mechanism product needs claim check").split(),  # noqa: SIM905
    *("effort runnable code room pages").split(),  # noqa: SIM905
]
SAID = ("mechanism", "product", "needs", "claim", "check")
RUN = 8
"""So many words in a row that an abstract also has would be a quotation."""


def shipped() -> list[dict]:
    text = files("luthier.papers").joinpath("rows.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_374_rows_with_unique_ids_and_all_fields():
    assert len(shipped()) == len({r["id"] for r in shipped()}) == 374
    assert all(list(r) == FIELDS for r in shipped())
    assert [r.id for r in rows()] == sorted(r["id"] for r in shipped())
    assert set(Row.model_fields) == set(FIELDS)


def test_rows_hold_one_line_of_printable_text_and_no_addresses_of_machines():
    for r in shipped():
        text = " ".join(v if isinstance(v, str) else " ".join(v) for v in r.values())
        odd = {c for c in text if not c.isprintable() and c != "\u0304"}
        assert not odd, (r["id"], odd)
        assert not re.search(r"https?://|file://|/home/|/tmp/|/work/|/root/", text), r["id"]
        assert re.fullmatch(r"([\w.-]+/[\w.-]+)?", r["code"]), r["id"]


def test_abstracts_are_not_shipped():
    names = [p.name for p in Path(str(files("luthier"))).rglob("*")]
    assert not [n for n in names if "abstract" in n.lower()]
    assert not any("abstract" in r for r in shipped())


@pytest.mark.skipif(not SYSTEMS.is_dir(), reason="the collection that the rows were copied from is not here")
def test_rows_quote_no_abstract_and_differ_from_the_collection_in_reworded_claims_only():
    abstracts = {}
    for line in (SYSTEMS / "abstracts.jsonl").read_text(encoding="utf-8").splitlines():
        read = json.loads(line)
        abstracts[read["id"]] = words(read["abstract"])
    collected = {
        r["id"]: r for r in map(json.loads, (SYSTEMS / "rows.jsonl").read_text("utf-8").splitlines())
    }
    for r in shipped():
        there = abstracts[r["id"]]
        runs = {tuple(there[i : i + RUN]) for i in range(len(there) - RUN + 1)}
        for field in SAID:
            here = words(r[field])
            quoted = [here[i : i + RUN] for i in range(len(here)) if tuple(here[i : i + RUN]) in runs]
            assert not quoted, (r["id"], field, quoted)
        changed = {f for f in FIELDS if r[f] != collected[r["id"]][f]}
        assert changed <= {"claim"}, (r["id"], changed)
        if changed:  # the figures of a claim survive its rewording
            before, after = figures(collected[r["id"]]["claim"]), figures(r["claim"])
            assert before <= after, (r["id"], before - after)


def figures(text: str) -> set[str]:
    return set(re.findall(r"\d[\d.]*", text.rstrip(".")))


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9%.]+", text.lower().replace(",", " "))


def test_a_row_with_an_unknown_field_or_value_is_refused():
    good = shipped()[0]
    assert Row.model_validate_json(json.dumps(good)).id == good["id"]
    for bad in (
        {"extra": 1},
        {"kind": "poem"},
        {"room": "attic"},
        {"title": ""},
        {"id": "S1"},
        {"also": "x"},
    ):
        with pytest.raises(ValidationError):
            Row.model_validate_json(json.dumps({**good, **bad}))
    with pytest.raises(ValidationError):
        rows()[0].title = "other"  # type: ignore[misc]


def test_status_names_known_rows_and_is_whole():
    for key, said in deliveries().items():
        assert row(key).delivery is said and said.status != "absent" and said.entry
        assert said.check or said.status != "works", f"{key} works without a stored check"
    assert row("S001").status == "absent" and row("S001").entry is None
    assert row("S282").entry == "prompt_tuning"


def test_record_holds_every_field_and_the_three_of_the_status():
    record = row("s282").record()
    assert list(record)[:6] == ["id", "title", "system", "status", "entry", "check"]
    assert set(record) == {*FIELDS, "status", "entry", "cause", "statement"}
    assert record["check"] == "S282" and record["statement"] == row("S282").check
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("prompt tuning", "S282"),
        ("ia3", "S294"),
        ("(IA)^3", "S294"),
        ("P-Tuning v2", "S099"),
        ("ptuning V2", "S099"),
        ("half fine-tuning", "S068"),
        ("xprompt", "S286"),
        ("ladder side", "S200"),
        ("s202", "S202"),
    ],
)
def test_find_puts_the_named_paper_first(query, first):
    assert find(query)[0].id == first


def test_find_returns_only_rows_with_every_word_and_takes_names_that_are_shared():
    assert {r.id for r in find("DePT")} >= {"S109", "S207"}
    both = {r.id for r in find("memory")} & {r.id for r in find("sparse")}
    assert {r.id for r in find("memory sparse")} == both and both
    assert find("memory nosuchword") == []
    assert find("") == find("  ") == rows()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(rows()), st.sampled_from(["title", "mechanism"]), st.data())
def test_every_row_is_found_by_words_of_its_own(r, field, data):
    pool = [w for w in getattr(r, field).split() if re.search(r"\w", w)]
    chosen = data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3))
    assert r in find(" ".join(chosen).swapcase())


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_find_survives_any_text(text):
    assert {r.id for r in find(text)} <= {r.id for r in rows()}


def test_filters_partition_the_rows_and_combine():
    for field in ("room", "family", "kind", "status"):
        counted = Counter(getattr(r, field) for r in rows())
        for value in catalogue.choices()[field]:
            assert len(find(**{field: value})) == counted[value]
    assert all("vision" in r.modality for r in find(modality="vision"))
    some = find("low-rank", room="weights", kind="method", modality="text")
    assert some and all(r.room == "weights" and r.kind == "method" for r in some)
    with pytest.raises(OptionError, match=r"room 'promts'\. Did you mean 'prompts'"):
        find(room="promts")
    with pytest.raises(OptionError, match=r"No paper has the id 'S999'.*S001 to S374"):
        row("S999")


def test_importing_the_catalogue_and_its_command_loads_no_heavy_library():
    code = (
        "import sys, luthier.papers, luthier.cli.papers; luthier.papers.find('lora');"
        "print([m for m in ('torch', 'numpy', 'transformers', 'sklearn', 'safetensors') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
