"""Rows of words with tags, from every source; faults are named."""

import json

import numpy as np
import pytest

from luthier.data.load import load_data, load_split
from luthier.errors import DataError, OptionError

WORDS = [
    ["Ann", "met", "Bo", str(i)] if i % 2 else ["in", "Rome", "on", "day", str(i), "."] for i in range(20)
]
TAGS = [["B-PER", "O", "B-PER", "O"] if i % 2 else ["O", "B-LOC", "O", "O", "O", "O"] for i in range(20)]
ROWS = [{"id": i, "tokens": w, "tags": t} for i, (w, t) in enumerate(zip(WORDS, TAGS))]


def write(tmp_path, ending):
    path = tmp_path / f"data{ending}"
    if ending == ".jsonl":
        text = "\n".join(map(json.dumps, ROWS))
    else:
        blocks = ["\n".join(f"{w}\tx\t{t}" for w, t in zip(*row)) for row in zip(WORDS, TAGS)]
        text = "-DOCSTART- -X- O\n\n" + "\n\n".join(blocks) + "\r\n\n"
    path.write_text(text, newline="")
    return str(path)


@pytest.mark.parametrize("source", [".jsonl", ".conll", "rows", "columns", "pair"])
def test_every_source_reads_as_the_same_tagging(tmp_path, source):
    made = {
        "rows": ROWS,
        "columns": {"tokens": WORDS, "tags": TAGS},
        "pair": (WORDS, [tuple(row) for row in TAGS]),
    }
    data = load_data(made[source] if source in made else write(tmp_path, source))
    task = data.task
    assert (task.kind, task.modality, task.metric) == ("tagging", "words", "entity_f1")
    assert task.labels == ("B-LOC", "B-PER", "O") and (task.input, task.label) == ("tokens", "tags")
    assert data.digest == load_data(ROWS).digest and sum(data.rows.values()) == 20
    words, tags = data.train[0]
    assert isinstance(words, tuple) and tags.dtype == np.int64 and len(words) == len(tags)


def test_texts_are_split_at_blanks_where_tagging_is_asked_for(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("words,tags\n" + "\n".join(f"{' '.join(w)},{' '.join(t)}" for w, t in zip(WORDS, TAGS)))
    data = load_data(str(path), kind="tagging", input="words", label="tags")
    assert data.train.inputs == load_data(ROWS).train.inputs
    assert load_split(str(path), data.task, labelled=False).inputs == [tuple(words) for words in WORDS]


def test_lists_that_are_no_tags_stay_multilabel():
    rows = {
        "text": [f"text {i} of it" for i in range(20)],
        "labels": [["a", "b"] if i % 3 else ["a"] for i in range(20)],
    }
    assert load_data(rows).task.kind == "multilabel"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: {"tags": ["O"]}}, r"row 4: 4 words in 'tokens' and 1 tags in 'tags'"),
        ({3: {"tokens": [], "tags": []}}, r"row 4: column 'tokens' holds no words"),
        ({3: {"tokens": ["a", " ", "b", "c"]}}, r"row 4: column 'tokens': word 2 is empty"),
        ({3: {"tokens": ["a", None, "b", "c"]}}, r"row 4: column 'tokens': word 2 is empty"),
        ({3: {"tokens": ["a", "\ud800", "b", "c"]}}, r"row 4.*surrogate"),
        ({3: {"tags": ["O", None, "O", "O"]}}, r"row 4: the label is a NoneType"),
        ({i: {"tags": ["O"] * len(ROWS[i]["tags"])} for i in range(20)}, r"one tag only"),
    ],
)
def test_faults_name_the_row(change, message):
    with pytest.raises(DataError, match=message):
        load_data([{**row, **change.get(i, {})} for i, row in enumerate(ROWS)])


def test_unknown_tags_two_columns_of_tags_and_words_without_tags_are_refused(tmp_path):
    strange = [{**ROWS[0], "tags": ["O", "B-ORG", "O", "O", "O", "O"]}]
    with pytest.raises(DataError, match="test row 1: label 'B-ORG' is not among the 3 of the train rows"):
        load_data({"train": ROWS, "test": strange})
    with pytest.raises(DataError, match="which column is the words and which their tags"):
        load_data([{**row, "pos_tags": row["tags"]} for row in ROWS])
    assert load_data(
        [{**row, "pos_tags": row["tags"]} for row in ROWS], input="tokens", label="pos_tags"
    ).task.label
    with pytest.raises(DataError, match="holds lists of words, which classification cannot read"):
        load_data({"words": WORDS, "label": ["a", "b"] * 10})
    with pytest.raises(OptionError, match="needs tags that mark entities"):
        load_data((WORDS, [["X" if "-" in t else "Y" for t in row] for row in TAGS]), metric="entity_f1")
    (tmp_path / "a.conll").write_text("Ann B-PER\nmet\n")
    with pytest.raises(DataError, match=r"a\.conll line 2 has no word with a tag"):
        load_data(str(tmp_path / "a.conll"))


def test_builtin_entities_defeat_the_word_and_share_no_name():
    from luthier.compare.tagging import fit_tagging
    from luthier.data.recipes import entities as recipe
    from luthier.data.scores import scores

    data = load_data("builtin:entities")
    assert data.rows == recipe.ROWS and data.task.metric == "entity_f1" and len(data.task.labels) == 7
    assert data.digest[:16] == "52ac8e1961663a97"
    shared = set(recipe.NAMES.split())
    used = [{w for row in part.inputs for w in row} & shared for part in data.parts.values()]
    assert not used[0] & used[1] and not used[0] & used[2] and not used[1] & used[2] and len(used[2]) > 40
    assert {tag for part in data.parts.values() for row in part.targets for tag in row.tolist()} == set(
        range(7)
    )
    sentences = [row for part in data.parts.values() for row in part.inputs]
    assert len(set(sentences)) == len(sentences)
    kinds = {}
    for words, tags in data.train:
        for word, tag in zip(words, tags):
            kinds.setdefault(word, set()).add(data.task.labels[tag].removeprefix("B-").removeprefix("I-"))
    assert all(kinds[name] == {"PER", "LOC", "ORG"} for name in used[0]), "every name is of every kind"
    predict = fit_tagging("word", None, data, None, 32, 0)[0]
    found = scores(data.task, data.test.targets, predict(data.test.inputs))
    assert found["entity_f1"] < 0.1 and 0.7 < found["accuracy"] < 0.9
