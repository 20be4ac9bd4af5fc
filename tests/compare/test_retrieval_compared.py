"""Retrieval compared: baselines by hand, metrics by rows, and a whole comparison that ends in a page."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from luthier.compare import evidence
from luthier.compare.baselines import features, fit_baseline, names_for
from luthier.compare.compare import compare
from luthier.compare.intervals import metric_of
from luthier.data.scores import scores
from luthier.data.split import Data, Split
from luthier.data.task import Task
from luthier.errors import DataError, FileFormatError
from tests.train import train_testbed as bed

TASK = Task(kind="retrieval", modality="text", input="query", label="code")


def rows(number, seed):
    """A document says its query's words in another order, among others."""
    rng = np.random.default_rng(seed)
    queries = [" ".join(rng.choice(bed.WORDS, 4, replace=False)) for _ in range(number)]
    return Split(queries, [" ".join(["the", *reversed(q.split()), "so"]) for q in queries])


def data():
    return Data(rows(40, 0), rows(16, 1), rows(24, 2), TASK, "pairs")


def test_baselines_rank_by_shared_words_and_by_the_frozen_models_vectors():
    model, made = bed.model(), data()
    assert names_for(TASK) == ("tfidf", "frozen")
    words = fit_baseline("tfidf", model, made, scores=scores).predict
    alike = Split(made.test.inputs, made.test.inputs)
    assert words(alike).tolist() == [1] * 24  # each is the likest to itself
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\w+|[^\w\s]")
    vectors.fit([*made.train.inputs, *made.train.targets])
    q, d = (vectors.transform(texts).toarray() for texts in (made.test.inputs, made.test.targets))
    assert words(made.test).tolist() == [1 + int((row > row[i]).sum()) for i, row in enumerate(q @ d.T)]
    frozen = fit_baseline("frozen", model, made, scores=scores).predict(made.test)
    q, d = (features(model, texts) for texts in (made.test.inputs, made.test.targets))
    cosine = (q / np.linalg.norm(q, axis=1, keepdims=True)) @ (d / np.linalg.norm(d, axis=1, keepdims=True)).T
    assert frozen.tolist() == [1 + int((row > row[i]).sum()) for i, row in enumerate(cosine)]
    empty = Data(Split([" "], [" "]), None, made.test, TASK, "empty")
    with pytest.raises(DataError, match="no words"):
        fit_baseline("tfidf", model, empty, scores=scores)


@pytest.mark.parametrize("name", ["mrr", "recall@1", "recall@5", "recall@10"])
def test_metrics_by_rows_equal_the_scores_on_every_resample(name):
    found = np.random.default_rng(0).integers(1, 15, 30)
    metric = metric_of(name, "retrieval", ["x"] * 30, found)
    assert metric.point() == pytest.approx(scores(TASK, ["x"] * 30, found)[name], abs=1e-12)
    drawn = np.random.default_rng(1).integers(0, 30, 30)
    times = np.bincount(drawn, minlength=30)[None]
    again = scores(TASK, ["x"] * 30, found[drawn])[name]
    assert float(metric.g(times @ metric.rows / 30)[0]) == pytest.approx(again, abs=1e-12)


def test_ranks_are_kept_and_read_strictly(tmp_path):
    split, found = rows(6, 0), np.array([1, 2, 3, 1, 9, 4])
    evidence.save_predictions(tmp_path / "p.jsonl", TASK, split, found)
    targets, read = evidence.load_predictions(tmp_path / "p.jsonl", TASK.model_dump())
    assert targets == split.targets and np.array_equal(read, found)
    (tmp_path / "p.jsonl").write_text('{"row": 0, "target": "x", "rank": "first"}\n')
    with pytest.raises(FileFormatError):
        evidence.load_predictions(tmp_path / "p.jsonl", TASK.model_dump())


def test_a_whole_comparison(tmp_path):
    made = compare(
        bed.model(), data(), ["lora:rank=2"], budget="epochs=1", grid=False, seeds=2, batch_size=8,
        progress=False, out=tmp_path / "out",
    )  # fmt: skip
    arms = {arm["name"]: arm for arm in made.results["arms"]}
    assert all(arm["status"] == "done" for arm in arms.values()) and len(arms) == 3
    for arm in arms.values():
        assert arm["summary"]["metric"] == pytest.approx(np.mean([r["test"]["mrr"] for r in arm["runs"]]))
    page = made.report(tmp_path / "page.html")
    assert "Frozen model" in (tmp_path / "page.html").read_text() and page is not None
