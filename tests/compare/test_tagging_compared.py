"""Taggings compared: the metrics by rows are those of scikit-learn and of the entities, and a whole comparison ends."""

import json

import numpy as np
import pytest

from luthier.compare import evidence
from luthier.compare.baselines import names_for
from luthier.compare.intervals import metric_of, summarise
from luthier.compare.tagging import fit_tagging
from luthier.data.scores import scores
from luthier.data.split import Data, Split
from luthier.data.task import Task
from luthier.errors import FileFormatError

LABELS = ("B-X", "B-Y", "I-X", "O")
TASK = Task(kind="tagging", modality="words", labels=LABELS, input="tokens", label="tags")


def taggings(rows=40, seed=0):
    rng = np.random.default_rng(seed)
    targets = [rng.integers(0, 4, rng.integers(1, 8)) for _ in range(rows)]
    said = [np.where(rng.random(len(t)) < 0.7, t, rng.integers(0, 4, len(t))) for t in targets]
    return targets, said


def named(rows):
    return [[LABELS[t] for t in row] for row in rows]


@pytest.mark.parametrize("name", ["entity_f1", "accuracy", "macro_f1"])
def test_metrics_by_rows_equal_the_scores_on_every_resample(name):
    targets, said = taggings()
    metric = metric_of(name, "tagging", named(targets), named(said))
    assert metric.point() == pytest.approx(scores(TASK, targets, said)[name], abs=1e-12) and not metric.slow
    drawn = np.random.default_rng(1).integers(0, 40, 40)
    times = np.bincount(drawn, minlength=40)[None]
    again = scores(TASK, [targets[i] for i in drawn], [said[i] for i in drawn])[name]
    assert float(metric.g(times @ metric.rows / 40)[0]) == pytest.approx(again, abs=1e-12)


def test_better_taggings_are_found_better():
    targets, said = taggings(200)
    arms = {
        n: [metric_of("entity_f1", "tagging", named(targets), named(p))]
        for n, p in (("a", said), ("b", targets))
    }
    found = summarise(arms, "entity_f1", reference=None)
    assert (
        found["b"]["best"]
        and found["b"]["metric"] == 1
        and found["a"]["low"] < found["a"]["metric"] < found["a"]["high"]
    )
    assert found["a"]["delta_vs_best"]["clear"]


def test_predictions_are_kept_as_tags_and_read_strictly(tmp_path):
    targets, said = taggings()
    split = Split([("w",) * len(t) for t in targets], targets)
    p = [np.eye(4, dtype=np.float32)[row] for row in said]
    evidence.save_predictions(tmp_path / "p.jsonl", TASK, split, p)
    card = TASK.model_dump(mode="json")
    assert evidence.load_predictions(tmp_path / "p.jsonl", card) == (named(targets), named(said))
    lines = (tmp_path / "p.jsonl").read_text()
    (tmp_path / "p.jsonl").write_text(lines.replace('"I-X"', '"Z"'))
    with pytest.raises(FileFormatError):
        evidence.load_predictions(tmp_path / "p.jsonl", card)
    data = Data(split, None, split, TASK, "tiny")
    evidence.save_test(tmp_path / "t.jsonl", data)
    assert json.loads((tmp_path / "t.jsonl").read_text().splitlines()[0])["input"] == " ".join(
        split.inputs[0]
    )


def test_a_words_own_tag_is_its_most_frequent_and_new_words_are_outside():
    train = Split([("a", "b", "a"), ("a", "c")], [np.array([0, 3, 2]), np.array([0, 1])])
    data = Data(train, None, train, TASK, "tiny")
    assert names_for(TASK) == ("majority", "word", "probe")
    predict = fit_tagging("word", None, data, scores, 32, 0)[0]
    (found,) = predict([("a", "b", "c", "new")])
    assert [LABELS[i] for i in found.argmax(1)] == ["B-X", "O", "B-Y", "O"]
    share = fit_tagging("majority", None, data, scores, 32, 0)[0]([("new",)])[0]
    assert share[0].tolist() == pytest.approx([0.4, 0.2, 0.2, 0.2])
