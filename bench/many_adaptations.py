"""Many LoRA adaptations over one base: a forward whose rows ask for N of them, and adding one more; here and with peft.

python bench/many_adaptations.py [--threads 2]    MiniLM, rank 8 on query and value, 64 rows of 8 tokens

Each figure is N = 64 against N = 2, and the 64th against the 2nd, on one side: how cost grows, not how much it is.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import timing
from training_step import batch_of


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    given = timing.arguments(__doc__, argv)
    import torch

    import luthier as lt

    rows, tokens, many, pairs = (4, 8, 4, 2) if given.smoke else (64, 8, 64, given.pairs or 8)
    base, batch = lt.load("builtin:minilm", device="cpu").base, batch_of(rows, tokens)
    with torch.no_grad():
        figures = [
            *forwards(base, batch, many, pairs),
            *additions(base, many, max(2, pairs // 2)),
        ]
    return timing.write("many_adaptations", figures, given)


def names(count: int, rows: int) -> list[str]:
    return [f"a{i % count}" for i in range(rows)]


def forwards(base: Any, batch: dict[str, Any], many: int, pairs: int) -> list[dict[str, Any]]:
    from luthier.host import Adaptation, Adapted
    from luthier.host.bank import Bank
    from luthier.methods.low_rank.lora import LoRA

    rows, theirs = len(batch["input_ids"]), peer(copy.deepcopy(base), many)
    adapted, banks = Adapted(base), {}
    for count in (2, many):
        banks[count] = Bank(base, {f"a{i}": Adaptation.new(LoRA(rank=8), base, seed=i) for i in range(count)})
        adapted.attach(f"of{count}", banks[count].adaptation)

    def forward(count: int) -> None:
        with adapted.using(f"of{count}"):
            banks[count](adapted, batch, names(count, rows))

    ours = timing.in_turns(partial(forward, many), partial(forward, 2), pairs)
    adapted.detach()
    other = timing.in_turns(
        lambda: theirs(**batch, adapter_names=names(many, rows)),
        lambda: theirs(**batch, adapter_names=names(2, rows)),
        max(2, pairs // 2),
        1,
    )
    runs = {
        "ours": {"many": ours["ours"], "two": ours["peer"]},
        "peer": {"many": other["ours"], "two": other["peer"]},
    }
    return [
        timing.figure(
            f"forward of {rows} rows over {many} adaptations against 2", timing.ratio_of(ours), 1.3, "times",
            peer=timing.ratio_of(other), peer_version=timing.peft_version(), runs=runs,
        )
    ]  # fmt: skip


def peer(base: Any, count: int) -> Any:
    """peft with `count` adapters."""
    from peft import get_peft_model

    model = get_peft_model(base, config(), adapter_name="a0")
    for i in range(1, count):
        model.add_adapter(f"a{i}", config())
    return model.eval()


def config() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], init_lora_weights=False)


def additions(base: Any, many: int, times: int) -> list[dict[str, Any]]:
    """Making one more adaptation and holding it: in a bank, attached by name, and added to peft's model."""
    from peft import get_peft_model

    from luthier.host import Adaptation, Adapted
    from luthier.host.bank import Bank
    from luthier.methods.low_rank.lora import LoRA

    def made(i: int) -> Any:
        return Adaptation.new(LoRA(rank=8), base, seed=i)

    def hold(add: Any, i: int) -> None:
        add(f"a{i}", made(i))

    found: dict[str, list[list[float]]] = {"bank": [], "attached": [], "peer": []}
    for turn in range(times):
        bank, adapted = Bank(base, {"a0": made(0)}), Adapted(base)
        adapted.attach("a0", made(0))
        each: dict[str, list[float]] = {"bank": [], "attached": [], "peer": []}
        theirs = get_peft_model(copy.deepcopy(base), config(), adapter_name="a0") if turn < 2 else None
        for i in range(1, many):
            each["bank"].append(timing.seconds(partial(hold, bank.add, i), collect=False))
            each["attached"].append(timing.seconds(partial(hold, adapted.attach, i), collect=False))
            if theirs is not None:
                add = partial(theirs.add_adapter, f"a{i}", config())
                each["peer"].append(timing.seconds(add, collect=False))
        adapted.detach()
        for k, v in each.items():
            if v:
                found[k].append(v)
    grown = {k: statistics.median(v[-1] / v[0] for v in runs) for k, runs in found.items()}
    return [
        timing.figure(
            f"adding adaptation {many} against the second, {how}", grown[key], 2.0, "times", peer=grown["peer"],
            peer_version=timing.peft_version(), runs={"ours": found[key], "peer": found["peer"]},
        )
        for key, how in (("bank", "to a bank"), ("attached", "attached by name"))
    ]  # fmt: skip


if __name__ == "__main__":
    main()
