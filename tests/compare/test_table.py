import csv
import io

import fake_results
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from luthier.compare.comparison import verdict
from luthier.compare.table import rows, seconds, show
from luthier.data.html import for_script


def printed(made, width=80):
    screen = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    screen.print(made.table())
    return screen.file.getvalue()


@pytest.fixture(scope="module")
def many():
    return fake_results.make(None, fake_results.texts(240, seed=1), seeds=1, grid=False)


def test_every_column_fits_into_eighty(many):
    text = printed(many)
    assert all(len(line) <= 80 for line in text.splitlines())
    for word in (
        "accuracy",
        "Δ to best",
        "trained",
        "memory",
        "train",
        "ms/row",
        "file",
        "TF-IDF",
        "Majority",
        "Linear probe",
    ):
        assert word in text
    assert "…" not in text and "one seed" in text and "first taste, not a benchmark" in text


def test_a_failed_arm_is_loud_and_its_markup_inert(hostile):
    text = printed(hostile)
    assert text.count("FAILED") == 2 and "attention.[/b]qeury" in text.replace("\n", "")


def test_the_terminal_gets_no_escape_from_the_data(hostile):
    hostile.results["arms"][0]["label"] = "\x1b]0;owned\x07\x1b[2Jmajority\u202e"
    try:
        text = printed(hostile)
    finally:
        hostile.results["arms"][0]["label"] = "Majority"
    assert "owned" not in text and "[2J" not in text and "\u202e" not in text and "majority" in text


def test_the_csv_holds_every_arm_and_no_formula(hostile, tmp_path):
    hostile.results["arms"][-1]["label"] = "=1+1"
    try:
        path = hostile.csv(tmp_path / "b.csv")
    finally:
        hostile.results["arms"][-1]["label"] = "t-broken"
    lines = list(csv.reader(path.open()))
    header = list(rows(hostile.results)[0])
    assert lines[0] == header and len(lines) == 1 + len(hostile.results["arms"])
    assert lines[-1][1] == "'=1+1" and lines[-1][3] == "failed"
    numbers = [float(x) for x in (lines[1][header.index(n)] for n in ("value", "low", "high"))]
    assert numbers[1] <= numbers[0] <= numbers[2]
    assert not any(cell[:1] in "=@+" for line in lines for cell in line if cell)


@given(
    st.recursive(st.text() | st.integers() | st.none(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_json_in_a_script_cannot_end_it(value):
    import json

    text = for_script(value)
    assert json.loads(text) == value and not set("<>&\u2028\u2029") & set(text) and text.isascii()


def test_figures_are_short():
    assert [seconds(x) for x in (0.001, 0.5, 9.96, 31, 99, 600, 7200)] == [
        "<0.1 s", "0.5 s", "10.0 s", "31 s", "99 s", "10.0 min", "2.0 h",
    ]  # fmt: skip
    for name, largest in (
        ("parameters", 7e9),
        ("file_bytes", 7e9),
        ("latency_ms", 9e4),
        ("seconds_train", 9e5),
    ):
        assert all(len(show(name, v)) <= 8 for v in (0, 0.9, 12, 1234, 5e4, largest))


def test_the_verdict_says_what_the_test_cannot(many):
    said = verdict(many.results)
    assert "t-lora" in said and "cannot tell it from" in said
    assert verdict({**many.results, "arms": []}) == "No arm has finished yet."


def test_the_verdict_names_rates_at_the_end_of_the_grid(many):
    arms = [dict(a) for a in many.results["arms"]]
    tried = [{"factor": f, "chosen": f == 3.0} for f in (1.0, 3.0)]
    arms[-1]["trials"] = tried
    said = verdict({**many.results, "arms": arms})
    assert said.startswith(verdict(many.results)) and f"{arms[-1]['label']} (highest)." in said
