"""Numbers that an adaptation is told with every row: columns, and what is measured on images."""

from __future__ import annotations

import json

import numpy as np
import pytest

from luthier.data.covariates import sharpness
from luthier.data.load import load_data, load_split
from luthier.data.split import covaried
from luthier.data.task import Task
from luthier.errors import DataError
from luthier.train.batches import encode

ROWS = [
    {
        "text": f"film {i}",
        "label": "good" if i % 2 else "bad",
        "style": "plain",
        "noise": i / 4,
        "age": str(20 + i),
    }
    for i in range(12)
]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def numbers(split):
    """What each row should be told, by its own text."""
    of = {r["text"]: [r["noise"], float(r["age"])] for r in ROWS}
    return [of[text] for text in split.inputs]


def test_columns_of_numbers_come_with_their_rows(table):
    data = load_data(table, covariates=["noise", "age"], split=(0.5, 0.25, 0.25), seed=3)
    assert data.task.input == "text" and data.task.covariates == ("noise", "age")
    for part in data.parts.values():
        assert part.covariates.dtype == np.float32 and part.covariates.tolist() == numbers(part)
    part = data.train.select([2, 0])
    assert part.covariates.tolist() == numbers(part)
    rows = load_split(table, data.task, labelled=False)
    assert rows.targets is None and rows.covariates.tolist() == numbers(rows)
    assert load_split(table, data.task).covariates.tolist() == numbers(rows)
    assert load_split(table, data.task, covariates=()).covariates is None
    assert covaried(["a", "b"], [0.5]).covariates.tolist() == [[0.5], [0.5]]


def test_batches_carry_them_and_other_numbers_are_other_data(table):
    import luthier as lt

    data = load_data(table, covariates="noise")
    pre = lt.load("builtin:minilm").preprocess
    batch = encode(pre, data.train, data.task).batch([1, 0])
    assert batch["covariates"].tolist() == data.train.covariates[[1, 0]].tolist()
    assert data.train.digest != load_data(table, covariates="age").train.digest
    task = load_data(table).task
    assert "covariates" not in task.model_dump_json()
    assert Task.from_card(json.loads(data.task.model_dump_json())).covariates == ("noise",)


def test_what_is_no_number_and_no_column_is_named(table):
    for name, said in (
        ("style", "a number is expected"),
        ("nois", "Did you mean"),
        ("sharpness", "measured on images"),
    ):
        with pytest.raises(DataError, match=said):
            load_data(table, covariates=name, label="label", input="text")


def test_blurring_an_image_takes_from_its_sharpness():
    rng = np.random.default_rng(0)
    fine = rng.integers(0, 256, (1, 32, 32, 3)).astype(np.float64)
    found = [fine]
    for _ in range(3):
        wide = np.pad(found[-1], ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        found.append(sum(wide[:, i : i + 32, j : j + 32] for i in range(3) for j in range(3)) / 9)
    scores = sharpness(np.concatenate([*found, np.full_like(fine, 7.0)])).tolist()
    assert scores[:4] == sorted(scores[:4], reverse=True) and scores[4] == 0
    assert 0 <= scores[3] < scores[0] <= 1
    ramp = np.tile(np.arange(32.0), (32, 1))[None, :, :, None]
    assert sharpness(ramp)[0] < 0.2  # the moving average leaves all but its ends


def test_images_without_numbers_are_measured():
    import luthier as lt
    from luthier.data.covariates import with_measures

    digits = lt.data("builtin:digits", covariates="sharpness").limit(test=8)
    assert digits.task.covariates == ("sharpness",)
    want = sharpness(digits.test.inputs)[:, None]
    np.testing.assert_array_equal(digits.test.covariates, want)
    bare = encode(
        lt.load("builtin:vit").preprocess,
        digits.test.__class__(digits.test.inputs),
        digits.task,
        targets=False,
    )
    np.testing.assert_array_equal(bare.batch(range(8))["covariates"].numpy(), want)
    with pytest.raises(DataError, match="No measure is called 'noise'"):
        with_measures(digits, ["noise"])
