"""Histories: a column of lists of texts, from files and in memory, divided, found twice, and read again."""

from __future__ import annotations

import json

import pytest

import luthier as lt
from luthier.data import load_split
from luthier.data.split import Split
from luthier.errors import DataError

ROWS = [
    {"text": "What next?", "label": "ab"[i % 2], "events": [f"event {i}", "", f"another {i}"]}
    for i in range(40)
]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_column_of_lists_is_read_and_stays_with_its_rows(tmp_path):
    data = lt.data(jsonl(tmp_path / "users.jsonl", ROWS), input="text", label="label", history="events")
    assert data.task.history == "events"
    for part in data.parts.values():
        for (_, label), own in zip(part, part.histories, strict=True):
            number = int(own[0].split()[1])
            assert own == (f"event {number}", f"another {number}") and label == number % 2
    assert (
        sum(data.rows.values()) == 40 and min(data.rows.values()) > 0
    )  # equal texts, other histories: other rows
    again = load_split(tmp_path / "users.jsonl", data.task)
    assert again.histories == [(f"event {i}", f"another {i}") for i in range(40)]
    bare = load_split(tmp_path / "users.jsonl", data.task, labelled=False)
    assert bare.histories == again.histories and bare.targets is None


def test_in_a_csv_file_a_cell_is_a_json_list_or_empty(tmp_path):
    path = tmp_path / "users.csv"
    path.write_text('text,label,seen\nx,a,"[""one"", ""two""]"\ny,b,\nz,a,[]\nw,b,"[""three""]"\n')
    data = lt.data(path, input="text", label="label", history="seen", split=(1, 0, 0))
    assert data.train.histories == [("one", "two"), (), (), ("three",)]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("no list", "holds no list of texts"),
        ([1, 2], "item 1 is a int"),
        (["a", None], "item 2 is a NoneType"),
    ],
)
def test_what_is_no_history_names_its_row(tmp_path, cell, said):
    rows = [*ROWS[:5], {"text": "x", "label": "a", "events": cell}]
    with pytest.raises(DataError, match=said) as raised:
        lt.data(jsonl(tmp_path / "users.jsonl", rows), input="text", label="label", history="events")
    assert "6" in str(raised.value) and "\n" not in str(raised.value)


def test_a_column_that_is_missing_is_named(tmp_path):
    path = jsonl(tmp_path / "users.jsonl", ROWS)
    with pytest.raises(DataError, match=r"no column 'event'.*Did you mean 'events'"):
        lt.data(path, input="text", label="label", history="event")


def test_the_digest_sees_histories_and_selecting_takes_them_along():
    plain = Split(["a", "b"], ["x", "y"])
    some = Split(["a", "b"], ["x", "y"], histories=[("one",), ()])
    others = Split(["a", "b"], ["x", "y"], histories=[(), ("one",)])
    assert len({plain.digest, some.digest, others.digest}) == 3
    assert some.select([1, 0, 0]).histories == [(), ("one",), ("one",)]
    with pytest.raises(DataError, match="2 inputs with 1 histories"):
        Split(["a", "b"], histories=[()])


def test_a_task_without_histories_is_written_as_before():
    plain = lt.data(ROWS, input="text", label="label", split=(1, 0, 0)).task
    told = lt.data(ROWS, input="text", label="label", history="events").task
    assert "history" not in plain.model_dump(mode="json") and "history" not in plain.model_dump_json()
    for task in (plain, told):
        assert type(task).from_card(task.model_dump(mode="json")) == task


def test_copies_share_text_and_history():
    rows = [{"text": "What next?", "label": "a", "events": ["one"]}] * 3 + ROWS
    data = lt.data(rows, input="text", label="label", history="events", split=(1, 0, 0))
    assert any("2 of 43 train rows repeat another" in note for note in data.notes)
