"""Base weights altered by a hundred merges and unmerges of LoRA in bf16, here and with peft.

python bench/merge_cycles.py    MiniLM in bf16, rank 8 on query and value; the share of entries of the edited weights
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import timing


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    given = timing.arguments(__doc__, argv, cycles={"type": int, "default": 100})
    import torch
    from peft import LoraConfig, get_peft_model

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.methods.low_rank.lora import LoRA

    cycles = 3 if given.smoke else given.cycles
    base = lt.load("builtin:minilm", device="cpu").base.to(torch.bfloat16)
    edited = [n for n, _ in base.named_parameters() if n.endswith(("query.weight", "value.weight"))]
    held = {n: base.get_parameter(n).detach().clone() for n in edited}

    def altered(weights: dict[str, Any]) -> float:
        changed = sum(int((weights[n] != held[n]).sum()) for n in edited)
        return changed / sum(w.numel() for w in held.values())

    theirs = get_peft_model(copy.deepcopy(base), LoraConfig(r=8, target_modules=["query", "value"]))
    adapted = Adapted(base)
    made = Adaptation.new(LoRA(rank=8), base)
    adapted.attach("main", made)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():  # the same, trained-looking factors on both sides
        for at in made.at():
            layer = theirs.base_model.model.get_submodule(at.site.path)
            at.values["B"].copy_(torch.randn(at.values["B"].shape, generator=rng) * 0.02)
            layer.lora_A["default"].weight.copy_(at.values["A"])  # type: ignore[index,union-attr,operator]
            layer.lora_B["default"].weight.copy_(at.values["B"])  # type: ignore[index,union-attr,operator]
    for _ in range(cycles):
        adapted.merge("main")
        adapted.unmerge("main")
        theirs.merge_adapter()
        theirs.unmerge_adapter()
    ours = altered({n: base.get_parameter(n) for n in edited})
    peer = altered(
        {
            n: theirs.base_model.model.get_submodule(n.removesuffix(".weight")).base_layer.weight
            for n in edited
        }  # type: ignore[union-attr]
    )
    name = f"base weights altered by {cycles} bf16 merge/unmerge cycles"
    share = timing.figure(name, ours, 0.0, "share", peer=peer, peer_version=timing.peft_version())
    return timing.write("merge_cycles", [share], given)


if __name__ == "__main__":
    main()
