"""The embedded data: the frozen pydocs rows obey the recipe's rules, and every set is what its task says."""

import gzip
import hashlib
import json
import sys
from collections import Counter
from importlib.resources import files
from pathlib import Path
from sysconfig import get_paths

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.recipes import pydocs as recipe
from luthier.errors import DataError


@pytest.fixture(scope="module")
def frozen() -> list[dict[str, str]]:
    packed = files("luthier.data").joinpath("pydocs.jsonl.gz").read_bytes()
    return [json.loads(line) for line in gzip.decompress(packed).decode().splitlines()]


@pytest.fixture(scope="module")
def load():
    pytest.importorskip("luthier.data.split", reason="Data is another room's")
    from luthier.data.builtin import builtin

    made = {}
    return lambda name: made.setdefault(name, builtin(name))


def test_frozen_rows_are_what_the_cleaning_rules_allow(frozen):
    assert len(frozen) > 3000
    for row in frozen:
        assert list(row) == ["text", "topic", "split"]
        assert recipe.allowed(row["text"]) and recipe.summary(row["text"]) == row["text"], row
        assert row["split"] == recipe.split_of(row["text"])
    assert {row["topic"] for row in frozen} == set(recipe.TOPICS)
    assert max(Counter(row["topic"] for row in frozen).values()) <= recipe.CAP
    order = [recipe.digest(recipe.key(row["text"])) for row in frozen]
    assert order == sorted(order), "in the order of hashes, so that the first N are a random N"


def test_frozen_rows_hold_no_duplicates_and_no_near_duplicates_across_splits_either(frozen):
    from sklearn.feature_extraction.text import CountVectorizer

    keys = [recipe.key(row["text"]) for row in frozen]
    assert len(set(keys)) == len(keys)
    words = CountVectorizer(binary=True, token_pattern=r"\S+").fit_transform(keys).astype(np.int32)
    shared = (words @ words.T).tocoo()
    size = np.asarray(words.sum(axis=1)).ravel()
    similarity = shared.data / (size[shared.row] + size[shared.col] - shared.data)
    assert similarity[shared.row != shared.col].max() < recipe.NEAR


def test_the_notice_has_the_licence_and_the_counts(frozen):
    notice = files("luthier.data").joinpath("NOTICE-pydocs.txt").read_text(encoding="utf-8")
    assert (
        "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in notice
        and "Python Software Foundation; All Rights" in notice
    )
    assert f"{len(frozen)} one-line summaries" in notice and "Python 3.11.7" in notice
    listed = notice[: notice.index("The licence of Python")]
    counts = Counter((row["topic"], row["split"]) for row in frozen)
    for topic, modules in recipe.TOPICS.items():
        of = [counts[topic, split] for split in ("train", "validation", "test")]
        assert f"\n{topic}: {sum(of)} ({of[0]}, {of[1]}, {of[2]})\n" in notice
        assert all(m in listed.split() for m in (*modules.split(), *recipe.C_MODULES[topic].split()))


def test_no_module_has_two_topics():
    for table in (recipe.TOPICS, recipe.C_MODULES, recipe.BUILTIN_TYPES):
        counted = Counter(m for modules in table.values() for m in modules.split())
        assert max(counted.values()) == 1 and set(table) <= set(recipe.TOPICS)
    both = {m: t for t, ms in recipe.C_MODULES.items() for m in ms.split()}
    assert all(both.get(m, t) == t for m, t in recipe.MODULE_TOPIC.items())


@pytest.mark.parametrize(
    ("docstring", "first"),
    [
        ("Return the name.  Then more.", "Return the name."),
        ("Open a file\n    in binary mode.\n\nDetails.", "Open a file in binary mode."),
        ("sin(x, /)\n--\n\nReturn the sine of x.", "Return the sine of x."),
        ("find(sub[, start]) -> int\n\nReturn the lowest index.", "Return the lowest index."),
        ("S.find(sub) -> int", None),
        ("Use a form of it, e.g. this one, always.", "Use a form of it, e.g. this one, always."),
        ("Initialize self.  See help(type(self)).", None),
        ("Return repr(self).", None),
        ("Two words.", None),
        (">>> print(one, two, three)", None),
        ("", None),
        (None, None),
    ],
)
def test_summary_is_the_first_sentence_of_prose(docstring, first):
    assert recipe.summary(docstring) == first


def test_clean_keeps_what_occurs_under_one_topic_once_whatever_the_order():
    found = [
        ("files", "Open the file for reading."),
        ("files", "open the FILE for reading"),
        ("text", "Return the current position."),
        ("files", "Return the current position."),
        ("text", "Split a line into its fields by blanks."),
        ("text", "Split a line into its fields by tabs."),
        ("numbers", "Compute the sine of an angle."),
    ]
    rows = recipe.clean(found)
    assert Counter(row["topic"] for row in rows) == {"files": 1, "text": 1, "numbers": 1}
    assert recipe.clean(reversed(found)) == rows


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300))
def test_summary_survives_any_docstring_and_is_its_own_summary(docstring):
    found = recipe.summary(docstring)
    assert found is None or (recipe.allowed(found) and "\n" not in found)


def test_sources_are_parsed_not_run_and_own_notices_leave_a_file_out(tmp_path):
    body = 'def f():\n    """Pack the bytes tightly together."""\nraise SystemExit("imported")\n'
    (tmp_path / "struct.py").write_text(body)
    (tmp_path / "csv.py").write_text(
        "# Redistribution and use in source and binary forms are permitted\n" + body
    )
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "dom.py").write_text(body.replace("Pack", "Parse"))
    assert list(recipe.parsed(tmp_path)) == [
        ("formats", "Pack the bytes tightly together."),
        ("formats", "Parse the bytes tightly together."),
    ]


def test_equal_rows_are_written_as_equal_bytes(tmp_path, frozen):
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        recipe.write(frozen[:50], tmp_path / name)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    recipe.write(frozen[:50], tmp_path / "c.jsonl")
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == (tmp_path / "c.jsonl").read_bytes()


@pytest.mark.skipif(sys.version_info[:3] != (3, 11, 7), reason="the frozen rows are those of Python 3.11.7")
def test_frozen_rows_are_found_again_in_the_library_that_they_came_from(frozen, monkeypatch):
    topics = ("numbers", "dates", "formats")  # the others take seconds
    some = {m: t for m, t in recipe.MODULE_TOPIC.items() if t in topics}
    monkeypatch.setattr(recipe, "MODULE_TOPIC", some)
    found = {recipe.key(text) for _, text in (*recipe.parsed(Path(get_paths()["stdlib"])), *recipe.read())}
    again = [recipe.key(row["text"]) in found for row in frozen if row["topic"] in topics]
    assert np.mean(again) > 0.9  # not all: which modules in C there are differs between builds


@pytest.mark.parametrize(
    ("name", "classes", "size"), [("pydocs", 12, 4079), ("papers", 15, 374), ("digits", 10, 1797)]
)
def test_builtin_is_a_whole_classification_set(load, name, classes, size):
    data = load(name)
    assert data.task.kind == "classification" and data.task.metric == "accuracy"
    assert len(data.task.labels) == classes and data.name == f"builtin:{name}"
    assert sum(data.rows.values()) == size and set(data.rows) == {"train", "validation", "test"}
    seen = [
        x.tobytes() if isinstance(x, np.ndarray) else x for part in data.parts.values() for x in part.inputs
    ]
    assert len(set(seen)) == size, "no row is in two parts or twice in one"
    for part in data.parts.values():
        assert set(part.targets.tolist()) == set(range(classes)), "every class is in every part"
    assert 0.65 < len(data.train) / size < 0.75 and 0.17 < len(data.test) / size < 0.23


@pytest.mark.parametrize(
    ("name", "digest"),
    [("pydocs", "d88f9e316f2c1e90"), ("papers", "217ba03081da6e8f"), ("digits", "ff804fa8bd3724b9")],
)
def test_builtin_data_is_frozen(load, name, digest):
    state = hashlib.sha256()
    for part in load(name).parts.values():
        inputs = part.inputs.tobytes() if name == "digits" else "\0".join(part.inputs).encode()
        state.update(inputs + part.targets.astype("<i8").tobytes())
    assert state.hexdigest()[:16] == digest


def test_papers_under_ten_rows_are_other(load):
    data = load("papers")
    counts = Counter(data.task.labels[t] for part in data.parts.values() for t in part.targets)
    assert "other" in data.task.labels and min(counts.values()) >= 10
    assert counts["soft-prompt"] == 46


def test_digits_are_grey_images(load):
    data = load("digits")
    assert data.task.modality == "image" and data.train.inputs.shape[1:] == (8, 8, 1)
    assert data.train.inputs.dtype == np.uint8 and data.train.inputs.max() == 255


def test_pydocs_is_learnable_but_not_from_the_majority(load):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    data = load("pydocs")
    words = TfidfVectorizer(sublinear_tf=True)
    model = LinearSVC(C=0.3).fit(words.fit_transform(data.train.inputs), data.train.targets)
    accuracy = model.score(words.transform(data.test.inputs), data.test.targets)
    majority = np.bincount(data.test.targets).max() / len(data.test)
    assert majority < 0.15 and 0.55 < accuracy < 0.75


def test_an_unknown_name_lists_what_there_is(load):
    from luthier.data.builtin import BUILTIN, builtin
    from luthier.models.testbeds.tasks import TASKS

    assert (
        set(BUILTIN) == {"pydocs", "papers", "digits", *TASKS}
        and load("builtin:pydocs").digest == load("pydocs").digest
    )
    with pytest.raises(DataError, match=r"builtin:pydocs.*builtin:papers.*builtin:digits"):
        builtin("pydoc")
