"""Killed at any moment, a run given again ends bitwise as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE)])}
    done = subprocess.run(
        [sys.executable, str(HERE / "killed_runs.py"), str(tmp_path_factory.mktemp("killed")), "0"],
        capture_output=True, text=True, env=env, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("scenario", ["everything", "best"])
def test_a_killed_run_resumes_bitwise(scenario, kills):
    assert len(kills[scenario]) > 2
    assert [k for k in kills[scenario] if not k["same"] or k["left"]] == []


def test_every_point_was_reached(kills):
    assert [
        k for found in kills.values() for k in found if not k["reached"] and k["point"] != "any moment"
    ] == []
