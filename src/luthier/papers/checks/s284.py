"""S284, IAPT (Zhu et al. 2024): tokens at every block made from the instruction: what they read, what they cost, what they are worth."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, AtMost, Beats, Equals, Reported

TASKS = ("order-a", "order-b")
SETTINGS: dict[str, Any] = {"steps": 600, "batch_size": 16, "max_new_tokens": 8}

CHECK = Check(
    "S284",
    "Four tokens at every block, made from the instruction alone and once: the answer and padding do not reach them, a token costs "
    "what it costs the base, and they are worth twenty tokens of a prompt.",
    claims=(
        Beats(
            "accuracy",
            "exact match of IAPT with 4 tokens at least that of prompt tuning with 20, mean over two tasks, 3 seeds",
            arm="iapt",
            over="prompt_tuning",
            ties=True,
        ),
        AtMost("leak", "change of any layer's prompt when answer or padding tokens change (largest)", 1e-6),
        AtLeast(
            "read", "change of a layer's prompt when one instruction token changes (least over layers)", 1e-4
        ),
        AtMost("cached", "logits of generation with a cache and without (largest difference)", 1e-5),
        AtMost("gelu", "distance of the activation to GELU on [-5, 5] at the start (largest)", 1e-2),
        Equals("finite", "values of the activation on [-50, 50] that are not finite", 0),
        Equals("differ", "pairs of layers whose activations are the same after 20 steps", 0),
        AtMost("decode", "time of a token after the prefill, as a multiple of the base's", 1.05),
        AtMost("decode_lora", "the same as a multiple of unmerged LoRA's on all linear weights", 1.0),
        Reported("gap", "exact match of the two, task by task"),
    ),
    covers=(
        "luthier.methods.prompts.iapt",
        "luthier.methods.prompts.prompt_tuning",
        "luthier.sources.pooled",
        "luthier.sources.instruction",
        "testbed:llama",
    ),
    data="the Llama testbed and two tasks that it was not pretrained on",
    against="prompt tuning with 20 tokens at its own best of three learning rates; the base's and unmerged LoRA's time per token",
    minutes=15,
    notes="Time is the median of 200 tokens, the three models in turns. What a forward of an adapted model costs apart from the "
    "prompt (finding who is active) counts, and is much of a token of so small a model.",
)


def inputs(model: Any) -> dict[str, Any]:
    """Three rows of 12 tokens, of which the first two are padding in one row, and the last four an answer."""
    import torch

    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(20, model.base.config.vocab_size, (3, 12), generator=rng)
    mask, instruction = torch.ones_like(ids), torch.ones_like(ids)
    mask[1, :2], instruction[:, 8:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask, "instruction": instruction}


def prompts(adapted: Any, batch: Any) -> Any:
    """(layers, rows, length, width): what every block is given in front."""
    import torch

    from luthier.sources.pooled import Pooled

    kept: list[Any] = []
    usual = Pooled.make

    def make(self: Any, part: Any, *rest: Any) -> Any:
        found = usual(self, part, *rest)
        kept.append(found["P"])
        return found

    Pooled.make = make  # type: ignore[method-assign]
    try:
        with torch.no_grad():
            adapted(batch)
    finally:
        Pooled.make = usual  # type: ignore[method-assign]
    return torch.stack(kept)


@CHECK.measures("leak", "read", "cached", cheap=True)
def what_it_reads(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted

    model = run.model("llama", dtype="float64")
    adapted: Any = Adapted(model.base)
    adapted.attach("main", Adaptation.new(lt.methods.IAPT(), model.base).to(torch.float64))
    batch = inputs(model)
    ids, mask, instruction = (batch[k] for k in ("input_ids", "attention_mask", "instruction"))
    want = prompts(adapted, batch)
    others = {"answer": instruction == 0, "padding": mask == 0}
    for name, where in others.items():
        changed = torch.where(where, (ids + 11) % 90 + 20, ids)
        if torch.equal(changed, ids):
            raise RuntimeError(f"no {name} token was changed")
        run.record("leak", (prompts(adapted, {**batch, "input_ids": changed}) - want).abs().max(), arm=name)
    asked = ids.clone()
    asked[:, 5] = (asked[:, 5] + 11) % 90 + 20
    moved = (prompts(adapted, {**batch, "input_ids": asked}) - want).abs().amax((1, 2, 3))
    run.record("read", moved.min())

    options = {
        "max_new_tokens": 12,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    with torch.no_grad():
        made = [
            adapted.generate(input_ids=ids, attention_mask=mask, use_cache=cache, **options)
            for cache in (True, False)
        ]
    if not torch.equal(made[0].sequences, made[1].sequences):
        raise RuntimeError("generation without a cache writes other tokens")
    run.record("cached", (torch.stack(made[0].logits) - torch.stack(made[1].logits)).abs().max())


@CHECK.measures("gelu", "finite", "differ", cheap=True)
def the_activation(run: Any) -> None:
    import torch
    from torch.nn.functional import cross_entropy, gelu

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.sources.pooled import rational

    model = run.model("llama")
    adapted: Any = Adapted(model.base)
    made = Adaptation.new(lt.methods.IAPT(), model.base)
    adapted.attach("main", made)
    narrow, wide = torch.linspace(-5, 5, 10001), torch.linspace(-50, 50, 10001)
    for at in made.at():
        a, b = at.values["a"].detach(), at.values["b"].detach()
        run.record("gelu", (rational(narrow, a, b) - gelu(narrow)).abs().max(), arm=at.site.name)
        run.record("finite", int((~torch.isfinite(rational(wide, a, b))).sum()), arm=at.site.name)
    batch = inputs(model)
    optimiser = torch.optim.AdamW(made.trainable().values(), lr=1e-3)
    for _ in range(20):
        optimiser.zero_grad()
        logits = adapted(batch).logits[:, 7:-1]
        cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 8:].flatten()).backward()
        optimiser.step()
    rows = torch.stack([torch.cat([at.values["a"], at.values["b"]]) for at in made.at()]).detach()
    same = (rows[:, None] == rows[None]).all(-1).sum() - len(rows)
    run.record("differ", int(same) // 2, layers=len(rows))


@CHECK.measures("decode", "decode_lora", cheap=True)
def what_a_token_costs(run: Any) -> None:
    import copy
    import time
    from statistics import median

    import torch
    from transformers import DynamicCache

    import luthier as lt
    from luthier.host import Adaptation, Adapted

    model = run.model("llama")
    prompt = inputs(model)["input_ids"][:1]
    roles = (
        "attention.query | attention.key | attention.value | attention.output | mlp.gate | mlp.up | mlp.down"
    )
    methods = {"iapt": lt.methods.IAPT(), "lora": lt.methods.LoRA(rank=8, targets=roles)}
    models: dict[str, Any] = {"base": model.base}
    for name, method in methods.items():
        adapted: Any = Adapted(copy.deepcopy(model.base))
        adapted.attach("main", Adaptation.new(method, adapted.base))
        models[name] = adapted.base
    caches: dict[str, Any] = {}
    took: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for name, each in models.items():
            caches[name] = DynamicCache(config=model.base.config)
            each(input_ids=prompt, past_key_values=caches[name], use_cache=True)
        for i in range(200):
            token = torch.full((1, 1), 20 + i % 50)
            for name, each in models.items():
                began = time.perf_counter()
                each(input_ids=token, past_key_values=caches[name], use_cache=True)
                took[name].append(time.perf_counter() - began)
    times = {name: median(t) for name, t in took.items()}
    run.record("decode", times["iapt"] / times["base"], **times)
    run.record("decode_lora", times["iapt"] / times["lora"], **times)


@CHECK.measures("accuracy", "gap")
def on_tasks(run: Any) -> None:
    from statistics import fmean

    import luthier as lt

    model = run.model("llama")
    arms = {"iapt": lt.methods.IAPT(length=4), "prompt_tuning": lt.methods.PromptTuning(length=20)}
    found: dict[str, dict[str, dict[int, float]]] = {}
    for task in TASKS:
        named = {f"{name} {task}": arm for name, arm in arms.items()}
        found[task] = run.compare("gap", model, run.data(task), named, **SETTINGS)
    for name in arms:
        for seed in range(3):
            score = fmean(found[task][f"{name} {task}"][seed] for task in TASKS)
            run.record("accuracy", score, arm=name, seed=seed)
