"""What prompts cost: a step of DePT beside a prompt of as many numbers, and NTK-Attention of ever longer prefixes; all here.

python bench/prompts.py [--threads 2]    MiniLM, 16 rows of 128 tokens

DePT has 40 prompt tokens and a shift of the input that costs as many numbers as 60 more. NTK-Attention starts as a prefix of 16 or
of 4,096 tokens; for comparison the same ratio is stored of key/value prefixes of 16 and of 512.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import timing
from training_step import batch_of, step

LONG, SHORT, BUDGET = 100, 40, 100
LENGTHS, PREFIXES = (4096, 16), (512, 16)


def stepping(base: Any, method: Any, batch: dict[str, Any]) -> tuple[Callable[[], Any], int]:
    """A training step of a method on a shared base, and how many numbers it trains; attached while it runs."""
    from luthier.host import Adaptation, Adapted

    adapted: Any = Adapted(base)
    made = Adaptation.new(method, base)
    trained = list(made.trainable().values())
    take = step(lambda: adapted(batch).hidden, batch, trained)

    def attached() -> None:
        with adapted.attached(made):
            take()

    return attached, sum(p.numel() for p in trained)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    given = timing.arguments(__doc__, argv)
    import luthier as lt
    from luthier.methods.prefixes.ntk_attention import NTKAttention
    from luthier.methods.prefixes.p_tuning_v2 import PTuningV2
    from luthier.starts.prefix_kernel import PrefixKernel

    rows, tokens, pairs = (2, 16, 1) if given.smoke else (16, 128, given.pairs or 12)
    base, batch = lt.load("builtin:minilm", device="cpu").base, batch_of(rows, tokens)

    def turns(ours: Any, peer: Any) -> dict[str, list[float]]:
        a, count = stepping(base, ours, batch)
        b, other = stepping(base, peer, batch)
        if ours.name == "dept":
            assert 0 <= other - count < 1000, f"{count} trained numbers against {other}"
        return timing.in_turns(a, b, pairs, 1)

    dept = turns(
        lt.methods.DePT(length=SHORT, budget=BUDGET, max_positions=128), lt.methods.PromptTuning(length=LONG)
    )
    kernels, prefixes = (
        turns(*(make(n) for n in lengths))
        for make, lengths in (
            (lambda n: NTKAttention(start=PrefixKernel(length=n)), LENGTHS),
            (lambda n: PTuningV2(length=n), PREFIXES),
        )
    )
    figures = [
        timing.figure(
            f"step, DePT of {SHORT} tokens against a prompt of {LONG} with as many numbers", timing.ratio_of(dept), 0.9,
            "times", runs={"dept": dept["ours"], "prompt": dept["peer"]},
        ),
        timing.figure(
            f"step, NTK-Attention of {LENGTHS[0]} prefix tokens against {LENGTHS[1]}", timing.ratio_of(kernels), 1.05, "times",
            peer=timing.ratio_of(prefixes), peer_version=f"key/value prefixes here, {PREFIXES[0]} tokens against {PREFIXES[1]}",
            runs={"ours": kernels, "peer": prefixes},
        ),
    ]  # fmt: skip
    print(
        f"seconds a step, medians: DePT {statistics.median(dept['ours']):.3f}, prompt {statistics.median(dept['peer']):.3f}"
    )
    return timing.write("prompts", figures, given)


if __name__ == "__main__":
    main()
