"""fit and compare from the command line, by several processes: under torchrun, over workers, over Ray."""

import importlib.util
import json
import os
import signal
import sys
import time

import pytest
from agreement import compare_command, fit_command
from conftest import LIMIT, TORCHRUN, finish, run, start
from safetensors.torch import load_file

LUTHIER = ["-m", "luthier"]
ALONE = [sys.executable, *LUTHIER]
CLOCKED = (
    "seconds",
    "seconds_train",
    "latency_ms",
    "resident_bytes",
    "peak_bytes",
    "predicted_peak_bytes",
    "machine",
    "versions",
)


def unclocked(value):
    """Without what a clock or the machine decides."""
    if isinstance(value, dict):
        return {k: unclocked(v) for k, v in value.items() if k not in CLOCKED}
    return [unclocked(v) for v in value] if isinstance(value, list) else value


def said(folder, name):
    """(codes, what was printed, what was said beside it) of the processes that were given a command in `agreement.py`."""
    each = [json.loads(p.read_text()) for p in sorted(folder.glob(f"{name}.*.json"))]
    assert each
    return [e["code"] for e in each], "".join(e["out"] for e in each), "".join(e["err"] for e in each)


@pytest.fixture
def serial(fitted):
    codes, _, err = said(fitted / "1", "compare")
    assert codes == [1], err  # an arm failed
    return fitted / "1" / "compare"


def test_fit_prints_once_and_one_killed_process_is_made_good_by_the_same_command(inputs, fitted, tmp_path):
    whole, out = fitted / "2" / "fit", tmp_path / "out"
    codes, printed, err = said(fitted / "2", "fit")
    assert codes == [0, 0], err[-3000:]
    assert (
        printed.count("test:")
        == printed.count("trained numbers:")
        == err.count("Written to")
        == err.count("example:")
        == 1
    )

    process = start([*TORCHRUN, __file__, out, inputs])
    victim = tmp_path / "out.pid-1"
    limit = time.monotonic() + LIMIT
    while not (out / "checkpoints" / "10" / "DONE").exists() or not victim.exists():
        assert time.monotonic() < limit and process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.02)
    os.kill(int(victim.read_text()), signal.SIGKILL)
    code, _, _ = finish(process)
    assert code != 0 and not (out / "DONE").exists()

    code, _, err = run(*TORCHRUN, *LUTHIER, *fit_command(inputs, out))
    assert code == 0, err[-3000:]
    assert err.count("Going on from step") == 1
    a, b = (load_file(f / "adaptation" / "tensors.safetensors") for f in (whole, out))
    assert all((a[k] == b[k]).all() for k in a)


def test_a_failure_of_one_process_or_of_all_ends_them_with_one_message(inputs, fitted, tmp_path):
    codes, _, err = said(fitted / "2", "refused")
    assert codes == [2, 2] and err.count("error:") == 1, err[-3000:]
    code, _, err = run(*TORCHRUN, __file__, tmp_path / "b", inputs, "fail")
    assert code != 0 and err.count("error: no room in rank 1") == 1 and err.count("error: ") == 1, err[-3000:]


def test_compare_under_torchrun_is_that_of_one_process(fitted, serial):
    codes, printed, err = said(fitted / "2", "compare")
    assert codes == [1, 1] and printed.count("Report:") == 1, err[-3000:]
    one, two = (json.loads((f / "results.json").read_text()) for f in (serial, fitted / "2" / "compare"))
    for a, b in zip(one["arms"], two["arms"], strict=True):
        assert (a["status"], a["error"], a["rate"]) == (b["status"], b["error"], b["rate"])
        for x, y in zip(a["runs"], b["runs"], strict=True):
            assert y["test"] == pytest.approx(x["test"], abs=1e-3)


def check_same(serial, out):
    one, two = (unclocked(json.loads((f / "results.json").read_text())) for f in (serial, out))
    assert one == two
    for path in serial.glob("predictions/*.jsonl"):
        assert path.read_bytes() == (out / "predictions" / path.name).read_bytes()


def test_workers_make_what_one_process_makes_also_after_a_kill(inputs, serial, tmp_path):
    out = tmp_path / "out"
    process = start([*ALONE, *compare_command(inputs, out, "--workers", "2")])
    limit = time.monotonic() + LIMIT
    while not any(out.glob("runs/*/run.json")):
        assert time.monotonic() < limit and process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    code, _, err = run(*ALONE, *compare_command(inputs, out, "--workers", "2"))
    assert code == 1, err[-3000:]  # an arm failed, as in the other
    check_same(serial, out)


def test_a_ray_cluster_makes_what_one_process_makes(inputs, serial, tmp_path):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    code, _, err = run(*ALONE, *compare_command(inputs, tmp_path / "out", "--ray", "local", "--workers", "2"))
    assert code == 1, err[-3000:]
    check_same(serial, tmp_path / "out")


def main(out, inputs, fault=""):
    """The command of a test under torchrun, with every process's number written beside `out`, and checkpoints at every tenth step."""
    from pathlib import Path

    from luthier.cli.main import main
    from luthier.errors import RunError
    from luthier.train.watch import Watch

    rank = os.environ["RANK"]
    original = Watch.after_step

    def after_step(watch, run):
        watch.checkpoint_every = 10
        original(watch, run)
        if fault and rank == "1" and run.total == 3:
            raise RunError("no room in rank 1")
        if not fault and run.total >= 10:
            time.sleep(0.2)  # leaves time to be killed

    Watch.after_step = after_step
    Path(f"{out}.pid-{rank}").write_text(str(os.getpid()))
    return main(fit_command(Path(inputs), out))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
