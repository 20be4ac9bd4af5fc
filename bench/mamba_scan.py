"""A training step of Mamba on the CPU, batch 16 x 128: our scan and Transformers' slow path, in turns, one thread.

python bench/mamba_scan.py [--pairs 5] [--layers 2] [--width 192] [--batch 16] [--tokens 128]

Seconds are those that the processor spent on the step (`time.process_time`), so that other work on the machine does
not count.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def seconds(model: Any, ids: Any) -> tuple[float, float]:
    """(seconds of one forward and backward pass, its loss)."""
    model.zero_grad()
    began = time.process_time()
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return time.process_time() - began, loss.item()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    given = parser.parse_args(argv)
    import torch
    import transformers

    import luthier
    from luthier.models.scan import scanned

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=2048, hidden_size=given.width, num_hidden_layers=given.layers, state_size=16
    )
    theirs = transformers.MambaForCausalLM(config).train()
    ours = copy.deepcopy(theirs)
    scanned(ours)
    ids = torch.randint(0, 2048, (given.batch, given.tokens))
    seconds(ours, ids[:2, :16]), seconds(theirs, ids[:2, :16])
    runs: list[dict[str, float]] = []
    for _ in range(given.pairs):
        (mine, loss), (peer, other) = seconds(ours, ids), seconds(theirs, ids)
        runs.append(
            {"ours": mine, "peer": peer, "ratio": mine / peer, "difference of loss": abs(loss - other)}
        )
        print(runs[-1], flush=True)
    medians = {k: statistics.median(run[k] for run in runs) for k in ("ours", "peer", "ratio")}
    result = {
        "name": "mamba_scan",
        "unit": "processor seconds of a training step",
        **medians,
        "peer_version": f"transformers {transformers.__version__}, without kernels",
        "limit": 0.1,
        "runs": runs,
        "settings": {k: getattr(given, k) for k in ("layers", "width", "batch", "tokens")} | {"states": 16},
        "versions": {
            "luthier": luthier.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {"threads": 1, "processor": platform.processor() or platform.machine()},
    }
    path = Path(__file__).parent / "results" / "mamba_scan.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: result[k] for k in ("ours", "peer", "ratio", "limit")}, indent=1))


if __name__ == "__main__":
    main()
