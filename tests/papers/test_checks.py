"""Checks: what holds is worked out from raw figures, stale results are seen, and no row claims what nothing shows."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import DataError, FileFormatError, OptionError, RunError
from luthier.papers import digest, results
from luthier.papers.catalogue import deliveries, row
from luthier.papers.check import Check, check, ids
from luthier.papers.checking import Run, explored, measure
from luthier.papers.claims import AtLeast, AtMost, Beats, Equals, WithinError, interval

FIGURES = st.lists(st.floats(-1, 1), min_size=1, max_size=6)


def records(claim: str = "c", **arms: list[float]) -> list[dict]:
    return [
        {"claim": claim, "arm": a, "seed": s, "value": v}
        for a, values in arms.items()
        for s, v in enumerate(values)
    ]


# -- claims


@given(FIGURES, st.floats(-1, 1))
def test_bounds_look_at_the_worst_figure(values: list[float], limit: float) -> None:
    kept = records(a=values)
    assert AtMost("c", "", limit).judge(kept).holds == all(v <= limit for v in values)
    assert AtLeast("c", "", limit).judge(kept).holds == all(v >= limit for v in values)
    assert AtMost("c", "", limit).judge(kept).figure == max(values)
    assert AtLeast("c", "", limit).judge(kept).figure == min(values)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=6), st.floats(-0.5, 0.5))
def test_an_arm_beats_another_by_the_mean_of_paired_differences(
    pairs: list[tuple[float, float]], by: float
) -> None:
    verdict = Beats("c", "", arm="a", over="b", by=by).judge(
        records(a=[p[0] for p in pairs], b=[p[1] for p in pairs], control=[0.0])
    )
    mean = sum(a - b for a, b in pairs) / len(pairs)
    assert verdict.figure == pytest.approx(mean, abs=1e-12)
    assert verdict.low <= verdict.figure <= verdict.high
    if abs(mean - by) > 1e-9:
        assert verdict.holds == (mean > by)


@pytest.mark.parametrize("kind", [AtMost("c", "", 1.0), AtLeast("c", "", -1.0), Equals("c", "", 0.0)])
def test_nothing_recorded_and_nan_do_not_hold(kind) -> None:
    assert not kind.judge([]).holds
    assert not kind.judge(records(a=[math.nan])).holds
    assert not kind.judge(records(a=[0.0, math.nan])).holds
    assert not kind.judge(records(claim="other", a=[0.0])).holds


def test_a_comparison_needs_all_seeds_of_both_arms() -> None:
    claim = Beats("c", "", arm="a", over="b")
    assert claim.judge(records(a=[1, 1, 1], b=[0, 0, 0])).holds
    assert not claim.judge(records(a=[1, 1], b=[0, 0])).holds
    assert not claim.judge(records(a=[1, 1, 1, 1], b=[0, 0, 0])).holds  # a seed of the better arm alone
    assert not claim.judge(records(a=[1, 1, 1])).holds
    assert not claim.judge(records(a=[1, 1, 1], b=[1, 1, 1])).holds
    assert not claim.judge(records(a=[1, 1, math.nan], b=[0, 0, 0])).holds
    assert Beats("c", "", arm="a", over="b", ties=True).judge(records(a=[1, 1, 1], b=[1, 1, 1])).holds
    assert Beats("c", "", arm="a", over="b", by=-0.02).judge(records(a=[0.5] * 3, b=[0.51] * 3)).holds
    with pytest.raises(OptionError, match="two figures of 'a' at seed 0"):
        claim.judge([*records(a=[1]), *records(a=[0])])


def test_within_a_standard_error_is_of_the_paired_differences() -> None:
    base = {"b": [0.0, 0.0, 0.0]}
    low, error = [-0.1, 0.0, 0.1], 0.1 / 3**0.5
    for shift, errors, holds in (
        (-0.99 * error, 1.0, True),
        (-1.01 * error, 1.0, False),
        (1.01 * error, -1.0, True),
        (0.99 * error, -1.0, False),
    ):
        claim = WithinError("c", "", arm="a", over="b", errors=errors)
        assert claim.judge(records(a=[v + shift for v in low], **base)).holds == holds
    claim = WithinError("c", "", arm="a", over="b", seeds=1)
    assert not claim.judge(records(a=[1], b=[0])).holds  # one seed has no standard error
    assert not claim.judge(records(a=[1, 1, math.nan], **base)).holds
    assert not claim.judge(records(a=[1, 1, 1, 1], **base)).holds


def test_the_interval_is_students() -> None:
    from scipy import stats

    for n in range(2, 30):
        values = [math.sin(i) for i in range(n)]
        low, high = interval(values)
        want = stats.t.interval(0.95, n - 1, loc=sum(values) / n, scale=stats.sem(values))
        assert (low, high) == pytest.approx(want, rel=5e-3)
    assert interval([1.0]) == (None, None)


# -- running


def made(function=None, **options) -> Check:
    fresh = Check(
        "S202", "it holds", claims=(AtMost("small", "", 1.0), Beats("better", "", arm="a", over="b")),
        covers=("luthier.methods.low_rank.lora",), data="none", against="none", minutes=0.1, **options,
    )  # fmt: skip

    @fresh.measures("small", cheap=True)
    def small(run):
        run.record("small", 0.5)

    @fresh.measures("better")
    def better(run):
        for seed in range(3):
            run.record("better", run.once(["a", seed], function or (lambda: 1.0)), arm="a", seed=seed)
            run.record("better", 0.0, arm="b", seed=seed)

    return fresh


def test_a_check_is_measured_whole_or_in_part() -> None:
    whole = measure(made())
    assert whole.holds and whole.record()["holds"] and len(whole.stored.records) == 7
    part = measure(made(), only=["small"])
    assert not part.holds and [v.holds for _, v in part.verdicts] == [True, False]
    assert measure(made(), cheap=True).stored.records == part.stored.records
    with pytest.raises(OptionError, match=r"no claim 'smal'\. It claims: small, better"):
        measure(made(), only=["smal"])


def test_mistakes_of_a_check_are_named() -> None:
    with pytest.raises(OptionError, match="Two functions of the check S202 measure 'small'"):
        made().measures("small")(lambda run: None)
    with pytest.raises(OptionError, match="makes no claim"):
        made().measures("smal")
    with pytest.raises(OptionError, match="names no claim"):
        made().measures()
    run = Run(made(), _allowed=("small",))
    with pytest.raises(OptionError, match="measures small, not 'better'"):
        run.record("better", 1.0)
    silent = Check("S202", "", (AtMost("small", "", 1.0),), (), "", "", 1)
    silent.measures("small")(lambda run: None)
    with pytest.raises(OptionError, match="recorded nothing for small"):
        measure(silent)


def test_an_interrupted_check_goes_on_where_it_stopped(tmp_path: Path) -> None:
    calls = []

    def dies():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        measure(made(dies), work=tmp_path)
    (journal,) = tmp_path.iterdir()
    journal.write_text(journal.read_text() + '{"key": "[\\"a\\", 1]", "va')  # cut off while it was written
    assert measure(made(dies), work=tmp_path).holds
    assert len(calls) == 4  # one before, the one that died, and the two that were left


def test_data_that_is_not_shipped_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LUTHIER_SHARED_DATA", str(tmp_path))
    with pytest.raises(DataError, match="measures on trec, which is not shipped"):
        Run(made()).shared("trec")
    (tmp_path / "trec").mkdir()
    assert Run(made()).shared("trec") == tmp_path / "trec"


# -- stored results


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(results, "folder", lambda: tmp_path)
    results.stored.cache_clear()
    yield tmp_path
    results.stored.cache_clear()


def test_results_come_back_as_they_were_and_hold_by_their_figures(place: Path) -> None:
    result = measure(made())
    path = results.store(result)
    assert results.read(path) == result.stored
    forged = json.loads(path.read_text())
    for r in forged["records"]:
        r["value"] = -r["value"] if r["arm"] == "a" else r["value"]
    path.write_text(json.dumps(forged))
    assert not results.Result(result.check, results.read(path)).holds


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("digest"),
        lambda d: d.update(holds=True),
        lambda d: d["records"][0].update(value="0.5"),
        lambda d: d.update(id="S294"),
        lambda d: d.update(format=2),
        lambda d: d.update(date="yesterday"),
    ],
)
def test_damaged_results_are_refused(place: Path, damage) -> None:
    path = results.store(measure(made()))
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(FileFormatError, match=r"S202\.json"):
        results.read(path)


def test_the_digest_sees_code_and_not_its_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "digested_module.py"

    def of(text: str) -> str:
        file.write_text(text)
        return digest.digest(["digested_module"])

    first = of('"""A."""\ndef f(x):\n    """B."""\n    return x + 1\n')
    assert of("# C\n\ndef f(x):\n\n    return (x   +   1)  # D\n") == first
    assert of("def f(x):\n    return x + 2\n") != first
    assert of("def f(x, y=None):\n    return x + 1\n") != first
    with pytest.raises(OptionError, match=r"no module 'luthier\.nowhere'"):
        digest.digest(["luthier.nowhere"])


# -- what is in the repository


@pytest.mark.parametrize("id", ids())
def test_every_check_is_sound_and_covers_modules_that_exist(id: str) -> None:
    found = check(id)
    assert row(id).id == id and found.claims and found.statement.endswith(".")
    assert len({c.id for c in found.claims}) == len(found.claims)
    assert len(results.fingerprint(found)) == 64


def test_no_row_says_works_without_a_stored_holding_and_fresh_result() -> None:
    for id, delivery in deliveries().items():
        found = results.stored(id)
        if delivery.status == "works":
            assert found is not None, f"{id} says works and has no stored result: luthier check {id} --store"
            assert found.holds, f"{id} says works and its check does not hold: {found.figure}"
            assert found.check.whole, f"{id} says works and its check measures a part of its statement only"
        if found is not None:
            assert delivery.check == id, f"{id} has a stored result that status.json does not name"
            assert found.fresh, f"{id}: code changed since it was measured. Run: luthier check {id} --store"
            works = found.holds and found.check.whole
            assert delivery.status == ("works" if works else "partial"), f"{id}: {found.figure}"
            assert bool(delivery.cause) != works, (
                f"{id}: status.json says why a measured row is partial, and of no other"
            )


def test_a_random_few_of_the_cheap_figures_are_measured_again() -> None:
    """Others each day, the same within one."""
    known = [i for i in ids() if any(m.cheap for m in check(i).measured)]
    for id in random.Random(time.strftime("%Y%j")).sample(known, min(2, len(known))):
        again = measure(check(id), cheap=True)
        measured = {r.claim for r in again.stored.records}
        stored = results.stored(id)
        before = {c.id: v for c, v in stored.verdicts} if stored else {}
        for claim, verdict in again.verdicts:
            if claim.id in measured:
                assert verdict.holds == (before[claim.id].holds if before else True), (id, claim.id, verdict)


def test_declaring_and_judging_needs_no_torch() -> None:
    code = (
        "import sys; from luthier.papers.check import check, ids; from luthier.papers import results\n"
        "[(check(i), results.stored(i)) for i in ids()]; print('torch' in sys.modules, 'sklearn' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.split() == ["False", "False"]


def test_losses_are_means_of_the_last_steps_at_each_arms_best_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    def log(self, model, data, method, *, seed, rate, **settings):
        return [
            {"loss": 9.0},
            {"validation": {"loss": 7.0}},
            {"loss": rate + 4 / rate + seed},
            {"loss": rate + 4 / rate + seed + 2},
        ]

    monkeypatch.setattr(Run, "_log", log)
    made = Check(
        "S294", "", claims=(Beats("c", "", arm="b", over="a"),), covers=(), data="", against="", minutes=1
    )
    run = Run(made, _allowed=("c",))
    arms = {name: SimpleNamespace(rate=rate) for name, rate in (("a", 1.0), ("b", 3.0))}
    found = run.losses("c", None, None, arms, seeds=(0, 1), rates=(2.0, 1.0, 4.0), last=2)
    low = 1 + 1.5 + 4 / 1.5  # at half of 3.0, beyond the rates that were asked for
    assert found == {"a": {0: 5.0, 1: 6.0}, "b": {0: low, 1: low + 1}}
    assert [(r.arm, r.seed, r.value, r.about["rate"]) for r in run.records] == [
        ("a", 0, 5.0, 2.0), ("a", 1, 6.0, 2.0), ("b", 0, low, 1.5), ("b", 1, low + 1, 1.5),
    ]  # fmt: skip
    assert len(run.trials) == 3 + 5


def test_rates_are_tried_beyond_an_end_while_that_is_best() -> None:
    def tried(peak: float, fails: float = math.inf) -> tuple[float, list[float]]:
        seen = []

        def score(factor: float) -> float:
            seen.append(factor)
            if factor > fails:
                raise RunError("the loss is not finite")
            return -abs(math.log(factor / peak))

        return explored((0.5, 1.0, 2.0), score), seen

    assert tried(1.0) == (1.0, [0.5, 1.0, 2.0])
    assert tried(4.0) == (4.0, [0.5, 1.0, 2.0, 4.0, 8.0])
    assert tried(100.0) == (8.0, [0.5, 1.0, 2.0, 4.0, 8.0])
    assert tried(0.25) == (0.25, [0.5, 1.0, 2.0, 0.25, 0.125])
    assert tried(100.0, fails=3.0) == (2.0, [0.5, 1.0, 2.0, 4.0])
    assert explored((1.0,), lambda factor: 0.0) == 1.0
    assert explored((1 / 3, 1.0, 3.0), lambda factor: 0.5) == 1.0  # of equals the method's own
    with pytest.raises(RunError):
        tried(1.0, fails=1.5)  # among those asked for, a failure is one
