"""One training step of every change of weights that peft has too, in turns with peft: same base, sites, numbers, head and optimiser; and
the bytes of its file over those of what it trains.

python bench/weights.py [--threads 2] [--only dora]    MiniLM, 32 rows of 64 tokens

All linear layers of attention and feed-forward, both bases in evaluation mode; LoRA stands beside them for comparison. Each side draws its
own bases and positions, as many and of the same sizes. peft's OFT makes its rotations by a truncated series unless it is told to invert; both
are measured. Without its CUDA extension peft's BOFT has one factor, and so have both sides here; it trains whole blocks and a scale of each
output beside what counts here. The median of the steps' ratios is a figure too.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timing
from training_step import LINEAR, batch_of, ours, peer

MODULES = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
WORST, MEDIAN, FILE = 1.05, 0.90, 1.05


class Case(NamedTuple):
    """One method on both sides. alike: whether both train the same number of parameters."""

    name: str
    method: Any
    config: Callable[[], Any]
    alike: bool = True


def cases() -> list[Case]:
    import peft

    import luthier.methods as m

    at = {"target_modules": MODULES, "task_type": peft.TaskType.FEATURE_EXTRACTION}
    here = {"targets": LINEAR}
    lora = partial(peft.LoraConfig, r=8, lora_alpha=16, **at)
    oft = partial(peft.OFTConfig, oft_block_size=32, **at)
    return [
        Case("lora", m.LoRA(rank=8, **here), lora),
        Case("dora", m.DoRA(rank=8, **here), partial(lora, use_dora=True)),
        Case("vera", m.VeRA(rank=256, **here), partial(peft.VeraConfig, r=256, **at)),
        Case("loha", m.LoHa(rank=8, **here), partial(peft.LoHaConfig, r=8, **at)),
        Case("lokr", m.LoKr(rank=8, factor=8, **here), partial(peft.LoKrConfig, r=8, decompose_factor=8, **at)),
        Case("randlora", m.RandLoRA(rank=32, **here), partial(peft.RandLoraConfig, r=32, **at)),
        Case("fourierft", m.FourierFT(count=1000, **here), partial(peft.FourierFTConfig, n_frequency=1000, **at)),
        Case("waveft", m.WaveFT(count=1000, **here), partial(peft.WaveFTConfig, n_frequency=1000, **at)),
        Case("oft", m.OFT(block=32, **here), partial(oft, use_cayley_neumann=False)),
        Case("oft, beside peft's series", m.OFT(block=32, **here), oft),
        Case("boft", m.BOFT(block=8, levels=1, **here), partial(peft.BOFTConfig, boft_block_size=8, **at), False),
    ]  # fmt: skip


def file_sizes(base: Any, case: Case) -> tuple[float, float]:
    """Bytes of the tensors' file over those of the trained numbers, here and there."""
    from peft import get_peft_model

    from luthier.host import Adaptation
    from luthier.host.files import save

    made = Adaptation.new(case.method, base)
    model = get_peft_model(copy.deepcopy(base), case.config())
    theirs = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with tempfile.TemporaryDirectory() as folder:
        save(made, Path(folder, "here"), "0" * 64)
        model.save_pretrained(str(Path(folder, "there")))
        here, there = (
            sum(f.stat().st_size for f in Path(folder, side).rglob("*.safetensors")) / 4 for side in ("here", "there")
        )  # fmt: skip
    return here / made.counts()["method"], there / theirs


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    given = timing.arguments(__doc__, argv, only={"help": "only figures whose name contains this"})
    import luthier as lt

    rows, tokens, pairs = (2, 8, 1) if given.smoke else (32, 64, given.pairs or 12)
    base, batch = lt.load("builtin:minilm", device="cpu").base, batch_of(rows, tokens)
    figures: list[Any] = []
    files: list[Any] = []
    for case in cases():
        if given.only and given.only not in case.name:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that peft has no CUDA extension for BOFT
            theirs, peer_count = peer(copy.deepcopy(base), case.config(), batch)
            sizes = file_sizes(base, case)
        mine, count = ours(copy.deepcopy(base), case.method, batch)
        if case.alike:
            assert count == peer_count, f"{case.name}: {count} trained numbers here, {peer_count} there"
        runs = timing.in_turns(mine, theirs, pairs, 1)
        figures.append(timing.beside(f"step, {case.name}", runs, WORST, timing.peft_version()))
        files.append(
            timing.figure(
                f"file, {case.name}", sizes[0], FILE, "times the trained bytes", peer=sizes[1], peer_version=timing.peft_version()
            )
        )  # fmt: skip
    if len(figures) > 1:
        median = statistics.median(f["ratio"] for f in figures)
        figures.append(timing.figure("step, median of these ratios", median, MEDIAN, "times"))
    figures += files
    return timing.write("weights", figures, given)


if __name__ == "__main__":
    main()
