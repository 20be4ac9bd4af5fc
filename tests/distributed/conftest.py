"""Processes that these tests start: each with a limit of time, and ended with all that it started."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TESTS = HERE.parent
for folder in (HERE, TESTS / "train", TESTS / "e2e"):
    sys.path.insert(0, str(folder))

LIMIT = 600
"""Seconds; generous, because it only bounds what hangs."""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
"""--standalone takes a free port by itself."""


def environment():
    path = os.pathsep.join([*(p for p in sys.path if p), str(TESTS.parent / "src")])
    quiet = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    return {**os.environ, **quiet, "PYTHONPATH": path, "COLUMNS": "200"}


def start(command):
    """A process in a session of its own."""
    return subprocess.Popen(
        [str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        start_new_session=True,
    )  # fmt: skip


def finish(process, limit=LIMIT):
    """(exit code, standard output, standard error); fails after `limit` seconds. Nothing of its session is left."""
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        end(process)
        out, err = process.communicate()
        pytest.fail(f"nothing came to an end in {limit} s:\n{err[-3000:]}")
    finally:
        end(process)
    return process.returncode, out, err


def end(process):
    """Kill it with all below it, also those that torchrun put into sessions of their own."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(process.pid)
        for each in [top, *top.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def run(*command, limit=LIMIT):
    return finish(start(command), limit)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A folder with a tiny BERT and rows: bert/, rows.csv."""
    from e2e_testbed import save_bert, save_rows

    folder = tmp_path_factory.mktemp("inputs")
    save_bert(folder / "bert")
    save_rows(folder / "rows.csv")
    return folder


@pytest.fixture(scope="session")
def fitted(inputs, tmp_path_factory):
    """`1/` by one process, `2/` by two."""
    folder = tmp_path_factory.mktemp("agreement")
    for where, launcher in (("1", [sys.executable]), ("2", TORCHRUN)):
        code, _, err = run(*launcher, HERE / "agreement.py", folder / where, inputs)
        assert code == 0, err[-3000:]
    return folder
