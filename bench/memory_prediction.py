"""The peak memory that preflight predicts, beside the peak that is then reached, for several methods and batch sizes.

python bench/memory_prediction.py DATA [--steps 12]    each run in a process of its own
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import timing

CASES = [
    ("lora", 32),
    ("lora", 128),
    ("adapter", 32),
    ("prompt_tuning", 32),
    ("p_tuning_v2", 64),
    ("ia3", 32),
    ("bitfit", 32),
    ("full", 16),
    ("lst", 64),
]


def one(data: str, method: str, batch: int, steps: int) -> None:
    import torch

    import luthier as lt

    torch.set_num_threads(1)
    fitted = lt.fit(
        lt.load("builtin:minilm", device="cpu"),
        lt.data(data, limit=2000),
        method=method,
        batch_size=batch,
        steps=steps,
        progress=False,
        cache="off",
    )
    print(json.dumps({k: fitted.metrics[k] for k in ("predicted_peak_bytes", "peak_bytes")}))


def main(argv: Sequence[str] | None = None) -> dict[str, Any] | None:
    given = timing.arguments(
        __doc__, argv, data={"positional": True}, steps={"type": int, "default": 70}, one={"nargs": 2}
    )
    if given.one:
        return one(given.data, given.one[0], int(given.one[1]), given.steps)
    runs = []
    for method, batch in CASES:
        command = [
            sys.executable,
            __file__,
            given.data,
            "--steps",
            str(given.steps),
            "--one",
            method,
            str(batch),
        ]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = json.loads(output.splitlines()[-1])
        error = found["predicted_peak_bytes"] / found["peak_bytes"] - 1
        runs.append({"method": method, "batch": batch, **found, "error": error})
        print(
            f"{method:14} {batch:4} rows  predicted {found['predicted_peak_bytes'] / 1e6:7.1f} MB  reached {found['peak_bytes'] / 1e6:7.1f} MB  {error:+.1%}",
            flush=True,
        )
    worst = max(abs(r["error"]) for r in runs)
    name = "predicted peak memory, largest error of nine configurations"
    return timing.write("memory_prediction", [timing.figure(name, worst, 0.15, "share", runs=runs)], given)


if __name__ == "__main__":
    main()
