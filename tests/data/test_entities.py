"""Entities and their scores, against a table made by hand from the rules of CoNLL's script (seqeval's default mode)."""

import numpy as np
import pytest

from luthier.data.entities import entities, entity_counts, marks_entities, most_frequent_tag
from luthier.data.scores import scores
from luthier.data.split import Split, class_weights
from luthier.data.task import Task
from luthier.errors import DataError

IOB = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")


def task(labels=IOB, metric=""):
    return Task(kind="tagging", modality="words", labels=labels, input="tokens", label="tags", metric=metric)


def indices(rows, labels=IOB):
    return [np.array([labels.index(tag) for tag in row.split()]) for row in rows]


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", []),
        ("B-PER O", [("PER", 0, 1)]),
        ("B-PER I-PER O", [("PER", 0, 2)]),
        ("B-PER I-PER", [("PER", 0, 2)]),  # to the end
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),  # one behind the other
        ("B-PER I-PER B-PER I-PER", [("PER", 0, 2), ("PER", 2, 4)]),
        ("O I-PER I-PER O", [("PER", 1, 3)]),  # I after O begins one
        ("I-PER O", [("PER", 0, 1)]),  # and at the start
        ("B-PER I-LOC", [("PER", 0, 1), ("LOC", 1, 2)]),  # a change of type begins one
        ("I-PER I-LOC I-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),
        ("B-PER O I-PER", [("PER", 0, 1), ("PER", 2, 3)]),  # O parts them
        ("B-LOC I-LOC O B-PER", [("LOC", 0, 2), ("PER", 3, 4)]),
        ("S-PER E-PER", [("PER", 0, 1), ("PER", 1, 2)]),  # IOBES
        ("B-PER I-PER E-PER I-PER", [("PER", 0, 3), ("PER", 3, 4)]),
        ("E-PER E-PER S-PER S-PER", [("PER", 0, 1), ("PER", 1, 2), ("PER", 2, 3), ("PER", 3, 4)]),
        ("B I O B", [("", 0, 2), ("", 3, 4)]),  # without a type
        ("B-a-b I-a-b", [("a-b", 0, 2)]),  # a type may hold dashes
    ],
)
def test_entities_of_a_sequence(tags, found):
    assert entities(tags.split()) == found


@pytest.mark.parametrize(
    ("target", "said", "f1"),
    [
        ("B-PER I-PER O", "B-PER I-PER O", 1.0),
        ("B-PER I-PER O", "B-PER O O", 0.0),  # half an entity is none
        ("B-PER I-PER O", "B-LOC I-LOC O", 0.0),  # the right words, another type
        ("B-PER I-PER O", "O I-PER O", 0.0),
        ("B-PER I-PER O", "I-PER I-PER O", 1.0),  # the same entity, marked otherwise
        ("B-PER O B-LOC", "B-PER O O", 2 / 3),  # precision 1, recall 1/2
        ("B-PER O O", "B-PER O B-LOC", 2 / 3),
        ("B-PER O B-LOC", "B-LOC O B-LOC", 1 / 2),
        ("O O O", "O O O", 0.0),  # no entities anywhere: 0, as seqeval says
        ("B-PER B-PER O", "B-PER I-PER O", 0.0),  # two are not one
    ],
)
def test_entity_f1_of_one_sentence(target, said, f1):
    assert scores(task(), indices([target]), indices([said]))["entity_f1"] == pytest.approx(f1)


def test_f1_is_micro_over_all_sentences_and_sentences_do_not_touch():
    targets, said = indices(["B-PER O", "I-PER B-LOC", "O"]), indices(["B-PER B-LOC", "I-PER O", "O"])
    found = scores(task(), targets, said)
    assert found["entity_f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert found["accuracy"] == pytest.approx(3 / 5)
    # over the tags that occur: B-PER 1, B-LOC 0, I-PER 1, O 2*1/(2+2)
    assert found["macro_f1"] == pytest.approx((1 + 0 + 1 + 0.5) / 4)


def test_probabilities_score_as_their_likeliest_tags():
    targets = indices(["B-PER O", "O"])
    p = [np.eye(5)[row] * 0.6 + 0.08 for row in targets]
    assert scores(task(), targets, p) == scores(task(), targets, targets)


def test_tags_without_marks_are_scored_by_words():
    plain = ("NOUN", "VERB")
    assert task(plain).metric == "accuracy" and task().metric == "entity_f1"
    assert set(scores(task(plain), [np.array([0, 1])], [np.array([0, 0])])) == {"accuracy", "macro_f1"}
    with pytest.raises(ValueError, match="no metric 'entity_f1'"):
        task(plain, "entity_f1")
    assert marks_entities(("O", "I-X")) and not marks_entities(("O",)) and not marks_entities(("O", "X-B"))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([np.array([1])], "Row 1 has 2 words and 1 predicted tags"),
        ([np.array([[0.1, np.nan, 0, 0, 0]] * 2)], "diverged"),
        ([np.array([0, 9])], "there are 5 tags"),
    ],
)
def test_predictions_that_do_not_fit_raise(said, message):
    with pytest.raises(DataError, match=message):
        scores(task(), indices(["O O"]), said)


def test_counts_weights_and_the_tag_of_what_is_unknown():
    assert entity_counts(["B-PER", "O"], ["B-PER", "B-LOC"]) == (1, 3)
    split = Split([("a", "b", "c"), ("d",)], indices(["B-PER O O", "O"]))
    weights = class_weights(split, task())
    assert weights[1] / weights[4] == pytest.approx(3) and weights[[1, 4]].mean() == pytest.approx(1)
    assert most_frequent_tag(IOB, indices(["B-PER B-PER B-PER O"])) == "O"
    assert most_frequent_tag(("NOUN", "VERB"), [np.array([1, 1, 0])]) == "VERB"
