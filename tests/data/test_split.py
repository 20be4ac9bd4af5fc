"""Split, Task and class weights: content decides the digest, and a card that is no task is refused."""

import numpy as np
import pytest

from luthier.data import Data, Split, Task, class_weights, load_data
from luthier.errors import DataError


def texts(count):
    return [f"text number {at}" for at in range(count)]


def test_digests_follow_content_and_nothing_else():
    one = Split(["a", "b"], np.array([0, 1]))
    assert one.digest == Split(["a", "b"], np.array([0, 1])).digest
    assert one.digest.startswith("86d0f90d2f65ca36") and len(one.digest) == 64
    others = [
        Split(["ab", ""], np.array([0, 1])),
        Split(["a", "b"], np.array([1, 0])),
        Split(["a", "b"], np.array([0, 1], np.float32)),
        Split(["a", "b"], ["0", "1"]),
        Split(["a", "b"]),
        Split([("a", "b"), ("", "")], np.array([0, 1])),
        Split(np.array([[1.0], [2.0]]), np.array([0, 1])),
        Split(np.array([[1.0, 2.0]]).reshape(2, 1, 1), np.array([0, 1])),
    ]
    assert len({each.digest for each in [one, *others]}) == len(others) + 1
    big = Split(np.array([[1.0], [2.0]]).astype(">f8"), np.array([0, 1]).astype(">i8"))
    assert big.digest == others[6].digest


def test_split_selects_and_iterates():
    split = Split(texts(5), np.arange(5))
    assert split.select([4, 0, 0]).inputs == [texts(5)[4], texts(5)[0], texts(5)[0]]
    assert split.select(np.array([True, False, False, False, True])).targets.tolist() == [0, 4]
    assert [target for _, target in split] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError):
        Split(["a"], np.arange(2))


def test_class_weights_are_inverse_frequencies_of_mean_one():
    task = load_data((texts(40), ["a", "b"] * 20)).task
    weights = class_weights(Split(texts(8), np.array([0, 0, 0, 0, 0, 0, 1, 1])), task)
    assert np.allclose(weights, [0.5, 1.5]) and weights.dtype == np.float32
    assert class_weights(Split(texts(2), np.array([0, 0])), task).tolist() == [1, 1]
    with pytest.raises(DataError):
        class_weights(
            Split(["a"], np.zeros(1, np.float32)), load_data((texts(30), [at / 7 for at in range(30)])).task
        )


@pytest.mark.parametrize(
    "card",
    [
        {},
        {"kind": "classification"},
        {"kind": "classification", "modality": "text", "labels": ["a"], "input": "x", "label": "y"},
        {"kind": "classification", "modality": "text", "labels": ["a", "a"], "input": "x", "label": "y"},
        {"kind": "regression", "modality": "text", "labels": ["a"], "input": "x", "label": "y"},
        {"kind": "regression", "modality": "pair", "input": "x", "label": "y"},
        {"kind": "regression", "modality": "text", "input": "x", "label": "y", "metric": "accuracy"},
        {"kind": "regression", "modality": "text", "input": "x", "label": "y", "path": "/etc"},
        [1],
    ],
)
def test_a_card_that_is_no_task_is_refused(card):
    with pytest.raises(DataError, match="Not a task"):
        Task.from_card(card)


def test_data_says_how_much_of_what_it_is():
    task = Task(kind="classification", modality="text", labels=("a", "b"), input="t", label="l")
    part = Split(["x"] * 1200, np.zeros(1200, np.int64))
    data = Data(part, None, part.select([0]), task, "mine")
    assert repr(data) == "Data('mine', classification of 2 labels, 1,200 train, 1 test rows)"
    assert repr(part) == "Split(1,200 rows)" and repr(Split(["x"])) == "Split(1 rows, without labels)"
