import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace

import fake_results
import pytest
from fake_results import FakeFit, make

from luthier.compare.comparison import Comparison
from luthier.errors import DataError, FileFormatError, OptionError, RunError

TIMES = ("seconds_train", "latency_ms", "seconds", "machine")


def untimed(value):
    """Results without what a clock says."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if k not in TIMES}
    return [untimed(v) for v in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def data():
    return fake_results.texts(240)


def test_every_arm_gets_as_many_trials_and_the_test_rows_never_reach_fit(data, tmp_path):
    fit = FakeFit(data)  # asserts that it is given no test rows
    made = make(tmp_path / "out", data, ("t-lora", "t-ia3"), seeds=2, fit=fit)
    assert made.succeeded and not made.failed
    fitted = [c["method"] for c in fit.calls if "trials" in c["out"]]
    assert fitted.count("t-lora") == fitted.count("t-ia3") == 3
    arms = {a["name"]: a for a in made.results["arms"]}
    assert [t["factor"] for t in arms["t-ia3"]["trials"] if t["chosen"]] == [3.0]
    assert arms["t-ia3"]["rate"] == pytest.approx(9e-3) and arms["t-lora"]["rate"] == pytest.approx(1e-3)
    assert {r["seed"] for r in arms["t-lora"]["runs"]} == {0, 1} and len(arms["probe"]["runs"]) == 1
    assert all((tmp_path / "out" / "runs" / f"t-lora-{s}" / "DONE").exists() for s in (0, 1))


def test_without_a_grid_there_is_one_run_a_seed(data):
    fit = FakeFit(data)
    made = make(None, data, ("t-lora",), seeds=[3, 5], grid=False, fit=fit)
    assert [(c["seed"], c["rate"]) for c in fit.calls] == [(3, None), (5, None)]
    assert made.results["labelled"] == "first taste, not a benchmark"
    assert "chance_best" in made.best["summary"] and made.report(made.folder / "r.html").exists()


def test_a_failing_arm_is_recorded_and_the_others_go_on(data, tmp_path):
    made = make(tmp_path / "out", data, ("t-broken", "t-lora"), seeds=1)
    assert [a["name"] for a in made.failed] == ["t-broken"] and made.succeeded
    assert "qeury" in made.failed[0]["error"] and "\n" not in made.failed[0]["error"]


def test_a_faulty_arm_is_tried_again_by_the_same_command(data, tmp_path):
    make(tmp_path / "out", data, ("t-broken",), seeds=1)
    fit = FakeFit(data)
    made = make(tmp_path / "out", data, ("t-broken",), seeds=1, fit=fit)
    assert len(fit.calls) == 3 and not made.succeeded


def test_an_arm_above_the_parameter_budget_is_refused_untrained(data):
    fit = FakeFit(data)
    made = make(None, data, ("t-lora", "t-ia3"), seeds=1, fit=fit, budget="params=0.2%")
    assert "above the budget of 45,426" in made.failed[0]["error"]
    assert {c["method"] for c in fit.calls} == {"t-ia3"}


def test_the_head_does_not_count_in_the_parameter_budget(data):
    assert not make(None, data, ("t-ia3",), seeds=1, budget="params=23040").failed


def test_an_arm_above_the_memory_budget_is_refused_after_its_pilot(data):
    fit = FakeFit(data)
    made = make(None, data, ("t-lora", "t-lst"), seeds=1, fit=fit, budget="memory=200MB")
    assert [a["name"] for a in made.failed] == ["t-lora"] and "412 MB" in made.failed[0]["error"]
    assert [c["steps"] for c in fit.calls if c["method"] == "t-lora"] == [8]


def test_minutes_become_steps_once(data, tmp_path):
    fit = FakeFit(data)  # 31 s for 51 steps of t-lora
    made = make(tmp_path / "out", data, ("t-lora",), seeds=2, fit=fit, budget="minutes=0.1,epochs=100")
    pilot = made.results["arms"][-1]["pilot"]
    assert (
        pilot["seconds_per_step"] == pytest.approx(31 / 51) and 2 <= pilot["steps"] <= 3
    )  # 6 s, three trials
    assert [c["steps"] for c in fit.calls] == [8] + [pilot["steps"]] * 5


def test_steps_and_epochs_both_bind(data):
    fit = FakeFit(data)
    make(None, data, ("t-lora",), seeds=1, grid=False, fit=fit, budget="steps=1000,epochs=1")
    make(None, data, ("t-lora",), seeds=1, grid=False, fit=fit, budget="steps=2")
    assert [c["steps"] for c in fit.calls] == [5, 2]


def test_rows_limit_what_is_trained_on(data):
    assert (
        make(None, data, ("t-lora",), seeds=1, grid=False, budget="rows=50").results["data"]["rows"]["train"]
        == 50
    )


def test_a_finished_comparison_is_not_run_again(data, tmp_path):
    first = make(tmp_path / "out", data, ("t-lora",), seeds=2)
    fit = FakeFit(data)
    again = make(tmp_path / "out", data, ("t-lora",), seeds=2, fit=fit)
    assert not fit.calls and again.results == first.results


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": 3}, "seeds"),
        ({"grid": False}, "grid"),
        ({"grid": "0.1,1"}, "grid"),
        ({"budget": "params=3%,epochs=3"}, "budget.params_share"),
        ({"batch_size": 8}, "batch_size"),
        ({"methods": ("t-lora:rank=2",)}, "methods"),
        ({"rows": 200}, "data.digest"),
        ({"warmup": 0.1}, "further.warmup"),
    ],
)
def test_other_settings_are_refused_by_name(data, tmp_path, change, named):
    make(tmp_path / "out", data, ("t-lora",), seeds=1)
    before = (tmp_path / "out" / "results.json").read_bytes()
    wanted = {"methods": ("t-lora",), "seeds": 1, **change}
    other = fake_results.texts(wanted.pop("rows")) if "rows" in wanted else data
    with pytest.raises(RunError, match=named):
        make(tmp_path / "out", other, **wanted)
    assert (tmp_path / "out" / "results.json").read_bytes() == before


def test_a_folder_of_something_else_is_left_alone(data, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="something else"):
        make(tmp_path, data, ("t-lora",))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_or_future_result_is_refused(data, tmp_path):
    make(tmp_path / "out", data, ("t-lora",), seeds=1, grid=False)
    path = tmp_path / "out" / "results.json"
    path.write_text(path.read_text().replace("luthier comparison 1", "luthier comparison 9"))
    with pytest.raises(FileFormatError, match="comparison 9"):
        Comparison.load(tmp_path / "out")
    path.write_text('{"format": ')
    with pytest.raises(FileFormatError):
        make(tmp_path / "out", data, ("t-lora",), seeds=1, grid=False)


def test_nothing_is_written_for_a_mistake(data, tmp_path):
    out = tmp_path / "out"
    bare = replace(data, validation=None)
    for error, wrong in [
        (OptionError, {"methods": "t-lorra"}),
        (OptionError, {"budget": "params=0"}),
        (OptionError, {"seeds": 0}),
        (OptionError, {"seeds": [1, 1]}),
        (DataError, {"data": replace(data, test=None)}),
        (DataError, {"data": bare}),
    ]:
        with pytest.raises(error):
            make(out, **{"data": data, "methods": ("t-lora",), **wrong})
    assert not out.exists()
    assert make(None, bare, ("t-lora",), seeds=1, grid=False).succeeded


def test_a_full_disk_is_one_line_and_keeps_what_was_there(data, tmp_path, monkeypatch):
    make(tmp_path / "out", data, ("t-lora",), seeds=1, grid=False)
    before = (tmp_path / "out" / "results.json").read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        make(tmp_path / "out", data, ("t-lora",), seeds=1, grid=False)
    assert (tmp_path / "out" / "results.json").read_bytes() == before
    assert not list((tmp_path / "out").glob(".results*"))


class Told(FakeFit):
    """Says so when a fit begins, and takes a moment to end."""

    def __init__(self, data, line):
        super().__init__(data)
        self.line = line

    def __call__(self, *args, **settings):
        os.write(self.line, b"x")
        time.sleep(0.02)
        return super().__call__(*args, **settings)


def killed_at(out, data, begun, later):
    """Run a comparison in a child and kill it `later` seconds after `begun` fits have begun; whether it was
    still running.
    """
    read, line = os.pipe()
    child = multiprocessing.get_context("fork").Process(
        target=make, args=(out, data, ("t-lora", "t-ia3")), kwargs={"seeds": 2, "fit": Told(data, line)}
    )
    child.start()
    os.close(line)
    for _ in range(begun):
        os.read(read, 1)  # nothing more to read: it has ended
    time.sleep(later)
    child.kill()
    child.join()
    os.close(read)
    return child.exitcode == -signal.SIGKILL


@pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL")
def test_killed_anywhere_the_same_command_ends_with_the_same_result(data, tmp_path):
    whole = make(tmp_path / "whole", data, ("t-lora", "t-ia3"), seeds=2)
    out, states = tmp_path / "killed", set()
    # in the first trial, between a rename and its record, in the other arm's grid, with the second seed, ...
    for begun, later in ((1, 0.0), (1, 0.03), (2, 0.01), (2, 0.02), (1, 0.025), (2, 0.005), (1, 0.04)):
        assert killed_at(out, data, begun, later)
        results = json.loads((out / "results.json").read_text())
        states.add(tuple((a["name"], len(a["trials"]), len(a["runs"])) for a in results["arms"]))
    made = make(out, data, ("t-lora", "t-ia3"), seeds=2)
    assert len(states) >= 3 and untimed(made.results) == untimed(whole.results)
    for path in sorted((tmp_path / "whole" / "predictions").iterdir()):
        assert path.read_bytes() == (out / "predictions" / path.name).read_bytes()


@pytest.mark.parametrize("write", range(2, 24, 3))
@pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL")
def test_killed_in_the_middle_of_a_write_it_goes_on(data, tmp_path, write):
    def child():
        real, count = os.replace, iter(range(1, 1000))

        def dying(a, b):
            if next(count) == write:
                os.kill(os.getpid(), signal.SIGKILL)
            real(a, b)

        os.replace = dying
        make(tmp_path / "out", data, ("t-lora", "t-ia3"), seeds=2)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    made = make(tmp_path / "out", data, ("t-lora", "t-ia3"), seeds=2)
    assert made.succeeded and not list((tmp_path / "out").glob(".*"))
    assert untimed(made.results) == untimed(make(None, data, ("t-lora", "t-ia3"), seeds=2).results)


def test_two_at_once_are_told_apart_by_the_lock(data, tmp_path):
    make(tmp_path / "out", data, ("t-lora",), seeds=1, grid=False)
    from luthier.compare.folder import locked

    with locked(tmp_path / "out"), pytest.raises(RunError, match=f"process {os.getpid()}"):
        make(tmp_path / "out", data, ("t-lora",), seeds=1, grid=False)
    (tmp_path / "out" / "lock").write_text('{"pid": 1, "started": 5.0}')  # of a process that is gone
    assert make(tmp_path / "out", data, ("t-lora",), seeds=1, grid=False).succeeded


def test_results_that_name_files_outside_are_refused(data, tmp_path):
    made = make(tmp_path / "out", data, ("t-lora",), seeds=1, grid=False)
    made.results["arms"][0]["runs"][0]["predictions"] = "../../secret.jsonl"
    with pytest.raises(FileFormatError, match="outside"):
        made.report(tmp_path / "r.html")


def test_a_copied_folder_still_reports(data, tmp_path):
    make(tmp_path / "out", data, ("t-lora", "t-ia3"), seeds=1, grid=False)
    shutil.move(tmp_path / "out", tmp_path / "moved")
    loaded = Comparison.load(tmp_path / "moved")
    assert "accuracy" in repr(loaded) and loaded.report(tmp_path / "r.html").stat().st_size > 20_000
