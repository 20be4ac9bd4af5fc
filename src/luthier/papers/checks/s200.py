"""S200, ladder side-tuning (Sung et al. 2022): nothing goes back through the backbone, and what that saves."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Equals

TASK, EVERY = "departments", 25
REDUCTION = 8
SETTINGS: dict[str, Any] = {"steps": 800, "batch_size": 16, "max_new_tokens": 8}

CHECK = Check(
    "S200",
    "A side network trains without a gradient in the backbone: it keeps at most half of the activations that LoRA keeps, is "
    "within two points of LoRA on a sequence-to-sequence task, and starts better from the backbone's own pruned layers.",
    claims=(
        AtMost(
            "saved",
            "bytes saved for backward as a share of LoRA's, same batch, T5 (without parameters and loss)",
            0.5,
        ),
        Beats(
            "accuracy",
            "the side network is within 2 points of LoRA, mean of 3 seeds",
            arm="lst",
            over="lora",
            by=-0.02,
            ties=True,
        ),
        Beats(
            "start",
            "steps to the validation loss that both starts reach: random layers take more than pruned ones, mean of 3 seeds",
            arm="random",
            over="pruned",
        ),
        Equals(
            "gradients",
            "parameters of the backbone's blocks that get a gradient when all of them ask for one",
            0,
        ),
        Equals(
            "gate",
            "with its first gate at 1 the side state is the projected state of the backbone (largest difference)",
            0,
        ),
    ),
    covers=(
        "luthier.methods.side.lst",
        "luthier.starts.narrow",
        "luthier.methods.low_rank.lora",
        "luthier.methods.low_rank.pair",
        "testbed:t5",
    ),
    data="the T5 testbed and a task that it was not pretrained on",
    against="LoRA of rank 8 on the same rows at its own best of three learning rates; a side network with drawn layers",
    minutes=20,
)


def batch(model: Any, rows: int, tokens: int, answer: int) -> dict[str, Any]:
    import torch

    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(20, model.base.config.vocab_size, (rows, tokens + answer), generator=rng)
    return {
        "input_ids": ids[:, :tokens],
        "attention_mask": torch.ones(rows, tokens, dtype=torch.long),
        "decoder_input_ids": ids[:, tokens:],
    }


@CHECK.measures("saved", "gradients", "gate", cheap=True)
def the_backbone(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.instruments.saved import saved

    model = run.model("t5")
    given = batch(model, 16, 64, 16)
    kept = {}
    for name, method in (("lst", lt.methods.LST(reduction=REDUCTION)), ("lora", lt.methods.LoRA(rank=8))):
        made = Adaptation.new(method, model.base)
        adapted: Any = Adapted(model.base)
        with adapted.attached(made):
            held = [*model.base.parameters(), *model.base.buffers(), *made.parameters(), *given.values()]
            with saved(held) as meter:
                adapted(given).logits.sum()
            kept[name] = meter.bytes
    run.record(
        "saved",
        kept["lst"] / kept["lora"],
        lst=kept["lst"],
        lora=kept["lora"],
        batch="16 x 64, answers of 16",
    )

    made = Adaptation.new(lt.methods.LST(reduction=REDUCTION), model.base)
    adapted = Adapted(model.base)
    with adapted.attached(made):
        model.base.requires_grad_(True)
        try:
            adapted(given).logits.square().mean().backward()
            inside = [p for n, p in model.base.named_parameters() if ".block." in n]
            run.record("gradients", sum(p.grad is not None for p in inside), of=len(inside))
        finally:
            model.base.requires_grad_(False)
            model.base.zero_grad()
        if not any(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters()):
            raise RuntimeError(
                "the side network gets no gradient either, so that none in the backbone shows nothing"
            )
        network: Any = made.placed()[0].network
        for tower, ladder in network.items():
            # a block of T5 ends with its feed-forward layer; a hook on the block itself sees it before it is walked
            last = model.base.get_submodule(tower).block[0].layer[-1]
            seen: list[Any] = []
            hook = last.register_forward_hook(lambda m, a, out, seen=seen: seen.append(out))
            with torch.no_grad():
                ladder.gate[0] = 100.0
                out = adapted(given)
            hook.remove()
            state = out.notes["side"][0 if tower == "encoder" else len(model.base.encoder.block)]
            run.record("gate", (state - seen[0] @ ladder.down[1].mT).abs().max(), arm=tower)


@CHECK.measures("accuracy", "start")
def training(run: Any) -> None:
    import luthier as lt
    from luthier.models.testbeds.tasks import as_text2text

    model, data = run.model("t5"), as_text2text(run.data(TASK))
    pruned = lt.methods.LST(reduction=REDUCTION)
    run.compare("accuracy", model, data, {"lst": pruned, "lora": lt.methods.LoRA(rank=8)}, **SETTINGS)
    starts = {"pruned": pruned, "random": lt.methods.LST(reduction=REDUCTION, initial="random")}
    rates = {n: run.best_rate("start", n, model, data, m, **SETTINGS) for n, m in starts.items()}
    for seed in range(3):
        curves = {
            n: run.curve("start", n, model, data, m, every=EVERY, seed=seed, rate=rates[n], **SETTINGS)
            for n, m in starts.items()
        }
        both = max(min(scores["loss"] for _, scores in curve) for curve in curves.values())
        for name, curve in curves.items():
            steps = next(step for step, scores in curve if scores["loss"] <= both)
            run.record("start", steps, arm=name, seed=seed, loss=both, rate=rates[name])
