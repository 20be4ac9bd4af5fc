"""Columns of labels that an adaptation is told with every row."""

from __future__ import annotations

import json

import pytest

import luthier as lt
from luthier.data.load import load_data, load_split
from luthier.data.split import controlled
from luthier.data.task import Task
from luthier.errors import DataError
from luthier.train.batches import encode

ROWS = [
    {"text": f"film {i}", "label": "good" if i % 2 else "bad", "style": "plain" if i < 6 else "formal", "stars": i % 3}
    for i in range(12)
]  # fmt: skip


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def styles(split):
    """What each row should be told, by its own text."""
    of = {r["text"]: (r["style"], str(r["stars"])) for r in ROWS}
    return [list(of[text]) for text in split.inputs]


def test_a_column_travels_with_its_rows_through_the_division(table):
    data = load_data(table, attributes=["style", "stars"], split=(0.5, 0.25, 0.25), seed=3)
    assert data.task.input == "text" and data.task.attributes == ("style", "stars")
    assert not [note for note in data.notes if "not used" in note]
    for part in data.parts.values():
        assert part.attributes.tolist() == styles(part)
    assert load_data(table, attributes="style, stars", seed=3).task.attributes == ("style", "stars")


def test_rows_to_predict_bring_their_column_or_are_told_otherwise(table):
    task = load_data(table, attributes="style").task
    rows = load_split(table, task, labelled=False)
    assert rows.targets is None and rows.attributes[0].tolist() == ["plain"]
    assert load_split(table, task).attributes.tolist() == [[r["style"]] for r in ROWS]
    assert load_split(table, task, labelled=False, attributes=()).attributes is None
    assert controlled(["a", "b"], ["formal"]).attributes.tolist() == [["formal"], ["formal"]]


def test_a_batch_says_names(table):
    data = load_data(table, attributes=["style", "stars"])
    model = lt.load("builtin:t5", device="cpu")
    part = data.train.select([0, 1])
    batch = encode(model.preprocess, part, data.task).batch([1, 0])
    assert batch["attributes"] == [tuple(row) for row in reversed(styles(part))]
    ranked = encode(model.preprocess, part, data.task, head=lt.methods.make("choices", {"classes": 2}))
    assert ranked.batch([0])["attributes"] == [tuple(styles(part)[0])] * 2


def test_other_labels_are_other_data(table):
    one, other = load_data(table, attributes="style"), load_data(table, attributes="stars")
    assert len({one.train.digest, other.train.digest, load_data(table).train.digest}) == 3


def test_a_task_without_attributes_says_what_it_always_said(table):
    task = load_data(table).task
    assert "attributes" not in task.model_dump(mode="json") and "attributes" not in task.model_dump_json()
    told = load_data(table, attributes="style").task
    assert Task.from_card(told.model_dump(mode="json")) == told
    assert Task.from_card(json.loads(task.model_dump_json())) == task


def test_missing_and_empty_labels_are_named(table, tmp_path):
    with pytest.raises(DataError, match=r"no column 'styl'.*Did you mean 'style'"):
        load_data(table, attributes="styl")
    task = load_data(table, attributes="style").task
    holed = tmp_path / "holed.jsonl"
    holed.write_text("\n".join(json.dumps({**r, "style": "" if i == 4 else "x"}) for i, r in enumerate(ROWS)))
    with pytest.raises(DataError, match="line 5: the attribute 'style' is empty"):
        load_split(holed, task, labelled=False)
