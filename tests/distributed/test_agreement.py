"""Two processes agree with one, whether each has the base whole or a part of it."""

import json
import re

import pytest
from agreement import CASES, REFUSED, SHARDED
from safetensors.torch import load_file

GRADIENT = 3e-6
"""Largest difference of a gradient after one step, relative to the largest entry: sums in another order (seen: 5.5e-7)."""
AFTER_TEN = 1e-5
"""Largest difference of a trained tensor after ten steps (seen: 7.2e-7)."""


def worst(a, b):
    assert set(a) == set(b)
    return {k: float((a[k] - b[k]).abs().max()) for k in a if a[k].numel()}


def adaptation(folder):
    """Trained tensors, without key biases: softmax does not see them, so that Adam makes steps of mere rounding."""
    tensors = load_file(folder / "adaptation" / "tensors.safetensors")
    return {k: v for k, v in tensors.items() if not re.search(r"key\b.*bias", k)}


@pytest.mark.parametrize("name", [*CASES, *(f"{n}-shard" for n in SHARDED)])
def test_gradients_after_one_step_are_those_of_one_process(name, fitted):
    one, two = (
        load_file(fitted / w / f"{n}-gradients") for w, n in (("1", name.removesuffix("-shard")), ("2", name))
    )
    largest = max(float(g.abs().max()) for g in one.values())
    assert largest > 1e-4
    assert max(worst(one, two).values()) <= GRADIENT * max(largest, 1e-2)


@pytest.mark.parametrize("name", [*CASES, *(f"{n}-shard" for n in SHARDED)])
def test_ten_steps_and_figures_are_those_of_one_process(name, fitted):
    plain = name.removesuffix("-shard")
    one, two = fitted / "1" / plain, fitted / "2" / name
    assert max(worst(adaptation(one), adaptation(two)).values()) <= AFTER_TEN
    a, b = (json.loads((f / "metrics.json").read_text()) for f in (one, two))
    for part in ("validation", "test"):
        assert b[part] == pytest.approx(a[part], abs=1e-3)
    assert (a["steps"], a["parameters"], a["rows"]) == (b["steps"], b["parameters"], b["rows"])
    logs = [[json.loads(line) for line in (f / "log.jsonl").read_text().splitlines()] for f in (one, two)]
    losses = [[r["loss"] for r in log if "loss" in r] for log in logs]
    assert len(losses[0]) > 0 and losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}


def test_side_networks_read_from_the_cache_in_both(fitted):
    for where in "12":
        assert json.loads((fitted / where / "lst" / "metrics.json").read_text())["cache"]["bytes"] > 0


@pytest.mark.parametrize("name", SHARDED)
def test_each_process_holds_about_half_of_a_sharded_base(name, fitted):
    seen = json.loads((fitted / "2" / "shards.json").read_text())[name]
    assert seen["parts"] > 0
    assert seen["share"] == pytest.approx(0.5, abs=0.1)
    assert seen["same names"] and seen["left attached"] == [] and seen["trained of the base"] == 0
    assert "sharded" in seen["merge"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_sharding_cannot_serve_is_refused(name, fitted):
    said = json.loads((fitted / "2" / "shards.json").read_text())[name]
    assert "leave out shard" in said


def test_fewer_rows_than_processes_are_refused(fitted):
    seen = json.loads((fitted / "2" / "shards.json").read_text())
    assert "start fewer processes" in seen["few rows"]
    assert "--batch-size" in seen["small batch"]
