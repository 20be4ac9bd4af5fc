"""Plain texts as rows of text to text, and mixed into a task."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.cli.main import main
from luthier.data.load import load_data
from luthier.data.unlabelled import MARK, continued, mixed, ordered, read_texts, rows_of, spans
from luthier.errors import DataError, OptionError

WORDS = st.lists(st.text("abc", min_size=1, max_size=3), min_size=2, max_size=20)


@given(WORDS, st.integers(0, 50))
def test_spans_put_back_give_the_text(words, seed):
    source, target = spans(words, random.Random(seed))
    marks = [MARK.format(i) for i in range(len(words))]
    held: dict[str, list[str]] = {}
    for piece in target:
        if piece in marks:
            held[piece] = last = []
        else:
            last.append(piece)
    assert all(held.values())
    assert [w for piece in source for w in held.get(piece, [piece])] == words


@given(WORDS, st.integers(0, 50))
def test_other_objectives_keep_all_words(words, seed):
    first, rest = continued(words, random.Random(seed))
    assert first and rest and first + rest == words
    shuffled, answer = ordered(words, random.Random(seed))
    assert sorted(shuffled) == sorted(words) and answer == words


def test_objectives_take_turns_and_a_text_without_blanks_is_characters():
    made = rows_of(["a b c d"] * 6 + ["x", ""])
    assert [name for *_, name in made] == ["spans", "continue", "order", "write", "spans", "continue"]
    assert made[3][:2] == (MARK.format(0), "a b c d")
    ((source, target, _),) = rows_of(["สวัสดีครับ"], ["continue"])
    assert source + target == "สวัสดีครับ" and " " not in source
    with pytest.raises(OptionError, match="No objective 'magic'"):
        rows_of(["a b"], ["magic"])
    with pytest.raises(DataError, match="two words or more"):
        rows_of(["x"])


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "en.csv"
    path.write_text("input,target\n" + "\n".join(f"red oak {i},oak {i}" for i in range(40)))
    return path


def test_mixed_rows_say_their_language_and_task(task):
    data = load_data(task, kind="text2text", seed=0)
    texts = {"en": ["a b c", "d e f g"], "xx": ["u v w"]}
    made = mixed(data, texts, language="en", task="short", share=0.5, objectives=("spans", "order"))
    own = len(data.train)
    assert made.train.inputs[:own] == data.train.inputs
    told = [tuple(row) for row in made.train.attributes.tolist()]
    assert told[:own] == [("en", "short")] * own
    assert [language for language, _ in told[own:]] == ["en"] * (own // 2) + ["xx"] * (own // 2)
    assert {what for _, what in told[own:]} == {"spans", "order"}
    assert made.test.inputs == data.test.inputs and set(map(tuple, made.test.attributes)) == {("en", "short")}
    assert made.task.attributes == ("language", "task")
    again = mixed(data, texts, language="en", task="short", share=0.5, objectives=("spans", "order"))
    assert again.digest == made.digest
    assert len(mixed(data, texts, language="en", task="short", share=0.2).train) == own + 2 * round(own / 8)
    with pytest.raises(OptionError, match=r"share=1\.5"):
        mixed(data, texts, language="en", task="short", share=1.5)


def test_the_command_writes_what_fit_reads(task, tmp_path, capsys):
    (tmp_path / "xx.txt").write_text("u v w\n\nx y z\n")
    out = tmp_path / "mixed"
    command = [
        "mix", "--data", str(task), "--texts", f"xx={tmp_path / 'xx.txt'}", "--texts", f"en={task}", "--task", "short",
        "--out", str(out),
    ]  # fmt: skip
    assert main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    read = load_data(out, kind="text2text", attributes="language,task", split=(1, 0, 0))
    assert read.rows == said["rows"] and said["tasks"] == ["short", "spans", "continue", "order", "write"]
    assert {tuple(row) for row in read.train.attributes.tolist()} >= {
        ("en", "short"),
        ("xx", "spans"),
        ("xx", "order"),
    }
    assert main(command) == 2 and "not empty" in capsys.readouterr().err


def test_texts_are_read_from_lines_and_from_predictions(tmp_path):
    (tmp_path / "a.txt").write_text("one two\n\nthree\n")
    assert read_texts(str(tmp_path / "a.txt")) == ["one two", "three"]
    rows = [{"row": i, "input": "x y", "target": "t", "predicted": p} for i, p in enumerate(["u v", ""])]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_texts(str(tmp_path / "p.jsonl")) == ["u v", ""]
    assert read_texts(str(tmp_path / "p.jsonl"), "target") == ["t", "t"]
    with pytest.raises(DataError, match="no column 'pred'"):
        read_texts(str(tmp_path / "p.jsonl"), "pred")
