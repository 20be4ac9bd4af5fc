"""S358, ID-SPAM (Sinha et al. 2025): a prompt made from the input: what it reads, and what each part of it is worth."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, AtMost, Beats, Reported

TASKS = ("pydocs", "departments", "verdicts")
LENGTH, BOTTLENECK, WIDTH = 10, 32, 384
SETTINGS: dict[str, Any] = {"steps": 200, "batch_size": 16}

CHECK = Check(
    "S358",
    "A prompt that self-attention makes from the instruction's embeddings does not read padding or the answer, is another for another "
    "input, and is worth more than a static one, than the same network on a constant input, and than pooling without attention.",
    claims=(
        Beats(
            "static",
            "mean accuracy over three tasks above that of a static prompt of as many tokens, 3 seeds",
            arm="id_spam",
            over="static",
        ),
        Beats(
            "constant",
            "mean accuracy over three tasks above the same network's on a constant input, 3 seeds",
            arm="id_spam",
            over="constant",
        ),
        Beats(
            "pooled",
            "mean accuracy over three tasks above that of pooling without attention of at least equal size, 3 seeds",
            arm="id_spam",
            over="pooled",
        ),
        Beats(
            "transfer",
            "accuracy on another domain of sentiment at least that of a static prompt, 3 seeds",
            arm="id_spam",
            over="static",
            ties=True,
        ),
        AtMost("padding", "change of the prompt when padding tokens change (largest)", 1e-6),
        AtMost("answer", "change of a decoder's prompt when answer tokens change (largest)", 1e-6),
        AtLeast("inputs", "difference of the prompts of two inputs (least over pairs of rows)", 1e-3),
        Reported("tasks", "accuracy of every arm, task by task"),
    ),
    covers=(
        "luthier.methods.prompts.id_spam",
        "luthier.methods.prompts.prompt_tuning",
        "luthier.sources.self_attention",
        "luthier.sources.instruction",
        "testbed:llama",
    ),
    data="the embedded MiniLM on summaries by topic, departments and verdicts; praise and blame in two kinds of sentences",
    against="prompt tuning of as many tokens; the same network on eight fixed random tokens; a wider network without attention; each "
    "at its own best of three learning rates",
    minutes=40,
)


def prompt(model: Any, made: Any, batch: Any) -> Any:
    """(rows, length, width) in front of the input of one forward."""
    import torch

    from luthier.host import Adapted
    from luthier.host.entry import Entrance

    kept: list[Any] = []
    usual = Entrance.prompts

    def prompts(self: Any, *rest: Any) -> Any:
        found = usual(self, *rest)
        kept.append(found.tokens[0])
        return found

    adapted: Any = Adapted(model.base)
    Entrance.prompts = prompts  # type: ignore[method-assign,assignment]
    try:
        with torch.no_grad(), adapted.attached(made):
            adapted(batch)
    finally:
        Entrance.prompts = usual  # type: ignore[method-assign]
    return kept[0]


@CHECK.measures("padding", "answer", "inputs", cheap=True)
def what_it_reads(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation

    for name in ("minilm", "llama"):
        model = run.model(name, dtype="float64")
        made = Adaptation.new(lt.methods.IDSPAM(length=LENGTH), model.base).to(torch.float64)
        rng = torch.Generator().manual_seed(0)
        ids = torch.randint(20, model.base.config.vocab_size, (4, 12), generator=rng)
        mask = torch.ones_like(ids)
        mask[1, 9:] = 0
        if name == "llama":
            mask[1] = mask[1].flip(0)
        batch = {"input_ids": ids, "attention_mask": mask}
        other = (ids + 11) % 90 + 20
        if name == "llama":
            batch["labels"] = torch.where(torch.arange(12) >= 8, ids, -100)
        want = prompt(model, made, batch)
        padded = prompt(model, made, {**batch, "input_ids": torch.where(mask == 0, other, ids)})
        run.record("padding", (padded - want).abs().max(), arm=name)
        if name == "llama":
            answered = torch.where(torch.arange(12) >= 8, other, ids)
            labels = torch.where(torch.arange(12) >= 8, other, -100)
            got = prompt(model, made, {**batch, "input_ids": answered, "labels": labels})
            run.record("answer", (got - want).abs().max(), arm=name)
        gaps = (want[:, None] - want[None]).abs().amax((2, 3)) + torch.eye(4) * 1e9
        run.record("inputs", gaps.min(), arm=name)


@CHECK.measures("static", "constant", "pooled", "transfer", "tasks")
def what_it_is_worth(run: Any) -> None:
    from statistics import fmean

    import luthier as lt
    from luthier.sources.self_attention import SelfAttention

    model = run.model("minilm")
    wider = BOTTLENECK + -(-3 * WIDTH // (1 + LENGTH))  # at least as many numbers as the attention has
    arms = {
        "id_spam": lt.methods.IDSPAM(length=LENGTH, source=SelfAttention(bottleneck=BOTTLENECK)),
        "static": lt.methods.PromptTuning(length=LENGTH),
        "constant": lt.methods.IDSPAM(length=LENGTH, source=constant_input()(bottleneck=BOTTLENECK)),
        "pooled": lt.methods.IDSPAM(length=LENGTH, source=SelfAttention(bottleneck=wider, attention=False)),
    }
    found: dict[str, dict[int, float]] = {}
    for task in TASKS:
        data = run.data(task).limit(train=1200, validation=200, test=400)
        found |= run.compare(
            "tasks", model, data, {f"{name} {task}": arm for name, arm in arms.items()}, **SETTINGS
        )
    for name in arms:
        for seed in range(3):
            mean = fmean(found[f"{name} {task}"][seed] for task in TASKS)
            for claim in ("static", "constant", "pooled"):
                if name in ("id_spam", claim):
                    run.record(claim, mean, arm=name, seed=seed)
    run.compare(
        "transfer",
        model,
        domains(run.data("verdicts")),
        {k: arms[k] for k in ("id_spam", "static")},
        **SETTINGS,
    )


def constant_input() -> Any:
    """The network with eight random tokens in place of the input, the same for every row."""
    import torch

    from luthier.host.part import register
    from luthier.sources.self_attention import SelfAttention

    class ConstantInput(SelfAttention):
        def read(self, site: Any, ctx: Any) -> Any:
            read = super().read(site, ctx)
            if read is None:
                return None
            h, _ = read
            drawn = torch.randn(8, h.shape[-1], generator=torch.Generator().manual_seed(0)) * 0.05
            tokens = drawn.to(h).expand(len(h), -1, -1)
            return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=h.device)

    return register("constant_input")(ConstantInput)


def domains(data: Any) -> Any:
    """Praise and blame alone: trained on sentences in which somebody speaks, tested on those about a thing."""
    from dataclasses import replace

    import numpy as np

    def chosen(part: Any, speaks: bool) -> Any:
        named = [(" called it " in text or ", says " in text) == speaks for text in part.inputs]
        return part.select(np.flatnonzero(np.array(named) & (part.targets < 2)))

    task = data.task.model_copy(update={"labels": data.task.labels[:2]})
    return replace(
        data,
        train=chosen(data.train, True),
        validation=chosen(data.validation, True),
        test=chosen(data.test, False),
        task=task,
    )
