"""A training step of Mamba on the CPU, batch 16 x 128: our scan and Transformers' slow path, in turns, one thread.

python bench/mamba_scan.py [--pairs 5] [--threads 1]    2 layers of width 192

Seconds are those that the processor spent on the step (`time.process_time`), so that other work on the machine does
not count.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from typing import Any

import timing


def seconds(model: Any, ids: Any) -> tuple[float, float]:
    """(seconds of one forward and backward pass, its loss)."""
    model.zero_grad()
    began = time.process_time()
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return time.process_time() - began, loss.item()


def main(argv: Sequence[str] | None = None) -> None:
    given = timing.arguments(__doc__, argv)
    import torch
    import transformers

    from luthier.models.scan import scanned

    torch.manual_seed(0)
    layers, width, batch, tokens = (1, 32, 2, 16) if given.smoke else (2, 192, 16, 128)
    config = transformers.MambaConfig(
        vocab_size=2048, hidden_size=width, num_hidden_layers=layers, state_size=16
    )
    theirs = transformers.MambaForCausalLM(config).train()
    ours = copy.deepcopy(theirs)
    scanned(ours)
    ids = torch.randint(0, 2048, (batch, tokens))
    seconds(ours, ids[:2, :16]), seconds(theirs, ids[:2, :16])
    runs: dict[str, list[float]] = {"ours": [], "peer": [], "difference of loss": []}
    for _ in range(given.pairs or (1 if given.smoke else 5)):
        (mine, loss), (peer, other) = seconds(ours, ids), seconds(theirs, ids)
        for name, value in zip(runs, (mine, peer, abs(loss - other)), strict=True):
            runs[name].append(value)
    found = timing.figure(
        f"a training step of Mamba, {batch} x {tokens} tokens, {layers} layers of width {width}",
        statistics.median(runs["ours"]),
        0.1,
        "processor seconds",
        peer=statistics.median(runs["peer"]),
        peer_version=f"transformers {transformers.__version__}, without kernels",
        ratio=timing.ratio_of(runs),
        runs=runs,
    )
    timing.write("mamba_scan", [found], given)


if __name__ == "__main__":
    main()
