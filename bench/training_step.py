"""One training step (forward, backward, AdamW) here and with peft, in turns: same base, sites, head and optimiser.

python bench/training_step.py [--threads 2]    MiniLM, 32 rows of 64 tokens

LoRA of rank 8 on all linear layers; (IA)3 on keys, values and the closing layer; 20 prefix or prompt tokens. The base is in
evaluation mode on both sides, or its dropout is on, on both; "as each trains" is what their own training does: here everything
frozen is in evaluation mode, and `model.train()` turns the base's dropout on in peft.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timing

LINEAR = "attention.query | attention.key | attention.value | attention.output | mlp.up | mlp.down"


def batch_of(rows: int, tokens: int) -> dict[str, Any]:
    """Random words; a quarter of every other row is padding."""
    import torch

    rng = torch.Generator().manual_seed(0)
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[::2, tokens * 3 // 4 :] = 0
    return {"input_ids": torch.randint(1000, 20000, (rows, tokens), generator=rng), "attention_mask": mask}


def step(forward: Callable[[], Any], batch: dict[str, Any], trained: list[Any]) -> Callable[[], Any]:
    """One update of `trained` and of a linear head on the mean of the hidden states."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    head = nn.Linear(384, 6)
    labels = torch.arange(len(batch["input_ids"])) % 6
    mask = batch["attention_mask"][:, :, None].float()
    optimiser = torch.optim.AdamW([*trained, *head.parameters()], lr=1e-4, fused=True)

    def take() -> None:
        optimiser.zero_grad(set_to_none=True)
        hidden = forward()
        loss = nn.functional.cross_entropy(head((hidden * mask).sum(1) / mask.sum(1)), labels)
        loss.backward()
        optimiser.step()

    return take


def ours(
    base: Any, method: Any, batch: dict[str, Any], training: bool = False
) -> tuple[Callable[[], Any], int]:
    from luthier.host import Adaptation, Adapted

    adapted = Adapted(base)
    made = Adaptation.new(method, base)
    adapted.attach("main", made)
    adapted.train()
    base.train(training)
    trained = list(made.trainable().values())
    return step(lambda: adapted(batch).hidden, batch, trained), sum(p.numel() for p in trained)


def peer(
    base: Any, config: Any, batch: dict[str, Any], training: bool = False
) -> tuple[Callable[[], Any], int]:
    from peft import get_peft_model

    model = get_peft_model(base, config).train(training)
    trained = [p for p in model.parameters() if p.requires_grad]

    def forward() -> Any:
        hidden = model(**batch).last_hidden_state
        return hidden[:, -batch["input_ids"].shape[1] :]  # without its prompt

    return step(forward, batch, trained), sum(p.numel() for p in trained)


def cases() -> list[tuple[str, float, Any, Callable[[], Any], bool, bool]]:
    """(name, limit, our method, peft's configuration, whether the base's dropout is on here, and there)."""
    from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, TaskType

    from luthier.methods.low_rank.lora import LoRA
    from luthier.methods.prefixes.p_tuning_v2 import PTuningV2
    from luthier.methods.prompts.prompt_tuning import PromptTuning
    from luthier.methods.scaling.ia3 import IA3

    kind = TaskType.FEATURE_EXTRACTION
    everywhere = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
    closing = r".*\.layer\.\d+\.output\.dense"
    scaled = {"target_modules": r".*\.(key|value)|" + closing, "feedforward_modules": closing}
    lora = partial(LoraConfig, r=8, lora_alpha=16, target_modules=everywhere, task_type=kind)
    others = [
        ("20 prefix tokens", PTuningV2(length=20), partial(PrefixTuningConfig, num_virtual_tokens=20, task_type=kind)),
        ("20 prompt tokens", PromptTuning(length=20), partial(PromptTuningConfig, num_virtual_tokens=20, task_type=kind)),
        ("(IA)3", IA3(), partial(IA3Config, task_type=kind, **scaled)),
    ]  # fmt: skip
    ours = LoRA(rank=8, targets=LINEAR)
    return [
        ("step, LoRA on all linear layers", 0.90, ours, lora, False, False),
        ("step, LoRA on all linear layers, base in training mode", 0.90, ours, lora, True, True),
        *((f"step, {name}", 0.95, method, config, False, False) for name, method, config in others),
        *(
            (f"step, {name}, as each trains", 0.95, method, config, False, True)
            for name, method, config in others
        ),
    ]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    given = timing.arguments(__doc__, argv, only={"help": "only figures whose name contains this"})
    import luthier as lt

    rows, tokens, pairs, warm = (2, 8, 1, 1) if given.smoke else (32, 64, given.pairs or 12, 1)
    base, batch, figures = lt.load("builtin:minilm", device="cpu").base, batch_of(rows, tokens), []
    for name, limit, method, config, dropout, peer_dropout in cases():
        if given.only and given.only not in name:
            continue
        mine, count = ours(copy.deepcopy(base), method, batch, dropout)
        theirs, peer_count = peer(copy.deepcopy(base), config(), batch, peer_dropout)
        assert count == peer_count, f"{name}: {count} trained numbers here, {peer_count} there"
        runs = timing.in_turns(mine, theirs, pairs, warm)
        figures.append(timing.beside(name, runs, limit, timing.peft_version()))
    return timing.write("training_step", figures, given)


if __name__ == "__main__":
    main()
