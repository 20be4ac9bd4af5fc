"""S068, Half Fine-Tuning (Hui et al. 2024): what stays, what trains, and what is remembered of earlier tasks."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, AtMost, Beats, Equals, Reported

TASKS, STEPS, ROWS = ("departments", "verdicts", "order-a"), 120, 600

CHECK = Check(
    "S068",
    "In every stage a random half of each block's matrices trains and the rest stays bitwise; on three tasks in a row it "
    "remembers more of the earlier ones than full tuning and learns the last as well.",
    claims=(
        Beats(
            "earlier",
            "mean exact match on the two earlier tasks after the third: above full tuning of the same matrices, 3 seeds",
            arm="half",
            over="full_blocks",
        ),
        Beats(
            "last",
            "exact match on the last task: within 2 points of full tuning of the same matrices, 3 seeds",
            arm="half",
            over="full_blocks",
            by=-0.02,
            ties=True,
        ),
        Reported("everything", "full tuning with embeddings and norms: earlier tasks and the last, 3 seeds"),
        Equals("frozen", "values outside the drawn half that a stage changed", 0),
        Equals("attention", "matrices of a block's four attention projections that train", 2),
        Equals("mlp", "blocks whose three feed-forward matrices do not train 1 and 2 in turns", 0),
        AtLeast("block_least", "the smallest share of a block that trains", 0.37),
        AtMost("block_most", "the largest share of a block that trains", 0.63),
        AtMost("half", "distance of the share of all blocks' parameters that trains from one half", 0.02),
        AtMost("optimiser", "the optimiser's state as a share of full tuning's of the same matrices", 0.55),
        Equals("redrawn", "a second stage draws another half (1: it does)", 1),
        Equals(
            "full", "at fraction 1, values that differ from full tuning of the same matrices after 5 steps", 0
        ),
    ),
    covers=("luthier.methods.sparse.half", "luthier.methods.sparse.parameters", "testbed:llama"),
    data="the Llama testbed, its shape counted at the proportions of the paper's models; three generated tasks, two of naming and one of writing digits in another order",
    against="fraction 1 of the same method at its own best of three learning rates; full tuning, reported",
    minutes=18,
    notes="Embeddings and norms are frozen in both judged arms. A rate is chosen by the mean validation score of all three "
    "tasks after the last, and by the loss within a task never.",
)


def tasks(run: Any, name: str) -> Any:
    """A generated task as one of text to text."""
    from luthier.models.testbeds.tasks import as_text2text

    data = run.data(name)
    return data if data.task.kind == "text2text" else as_text2text(data)


def stage(model: Any, fraction: float, index: int) -> tuple[Any, Any]:
    """(adaptation, adapted) after the draw of a stage."""
    import luthier as lt
    from luthier.host import Adaptation, Adapted

    method = lt.methods.HalfFineTuning(fraction=fraction)
    adapted: Any = Adapted(model.base)
    adapted.attach("main", Adaptation.new(method, model.base))
    run = SimpleNamespace(adapted=adapted, main=adapted.adaptations["main"], index=index, seed=0)
    method.draw(run)
    return run.main, adapted


@CHECK.measures("attention", "mlp", "block_least", "block_most", "half", "optimiser", "redrawn", cheap=True)
def what_is_drawn(run: Any) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    # the proportions of the paper's models: as many key heads as query heads, feed-forward layers of 8/3 of the width
    shape: dict[str, Any] = {
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    base = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=6, **shape))
    model = SimpleNamespace(base=base.eval().requires_grad_(False))
    state = {}
    for fraction in (0.5, 1.0):
        made, adapted = stage(model, fraction, 0)
        optimiser = torch.optim.AdamW(made.trainable().values())
        for p in optimiser.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        optimiser.step()
        state[fraction] = sum(t.numel() for s in optimiser.state.values() for t in s.values() if t.dim())
        adapted.detach("main")
    run.record("optimiser", state[0.5] / state[1.0])
    drawn = []
    for index in (0, 1):
        made, adapted = stage(model, 0.5, index)
        sizes: Counter[int] = Counter()
        trained: Counter[int] = Counter()
        kinds: Counter[tuple[int, str]] = Counter()
        for at in made.at():
            numel = at.site.in_features * at.site.out_features
            sizes[at.site.layer] += numel
            if at.layout["trains"]:
                trained[at.site.layer] += numel
                kinds[at.site.layer, at.site.role.split(".")[0]] += 1
        for layer in sizes:
            run.record("attention", kinds[layer, "attention"], arm=f"stage {index + 1}, block {layer}")
            share = trained[layer] / sizes[layer]
            run.record("block_least", share, arm=f"stage {index + 1}, block {layer}")
            run.record("block_most", share, arm=f"stage {index + 1}, block {layer}")
        turns = [kinds[layer, "mlp"] for layer in sorted(sizes)]
        wrong = sum({a, b} != {1, 2} for a, b in pairwise(turns))
        run.record("mlp", wrong, arm=f"stage {index + 1}", of_blocks=turns)
        run.record("half", abs(sum(trained.values()) / sum(sizes.values()) - 0.5), arm=f"stage {index + 1}")
        drawn.append({at.site.name for at in made.at() if at.layout["trains"]})
        adapted.detach("main")
    run.record("redrawn", drawn[0] != drawn[1])


@CHECK.measures("frozen", "full", cheap=True)
def what_stays(run: Any) -> None:
    import luthier as lt

    model, data = run.model("llama"), tasks(run, TASKS[0]).limit(train=64, validation=16, test=16)
    before = {n: t.clone() for n, t in model.base.state_dict().items()}
    settings: dict[str, Any] = {"steps": 5, "batch_size": 16, "rate": 1e-3}
    half = run.fit(model, data, lt.methods.HalfFineTuning(stages=1), **settings)
    trained = {at.site.path + ".weight" for at in half.adaptation.at() if at.layout["trains"]}
    after = half.merge().state_dict()
    changed = {n: int((after[n] != t).sum()) for n, t in before.items()}
    run.record("frozen", sum(count for n, count in changed.items() if n not in trained))
    if min(changed[n] / before[n].numel() for n in trained) < 0.9:
        raise RuntimeError("what was drawn did not train, so that what stayed shows nothing")
    whole = (
        run.fit(model, data, lt.methods.HalfFineTuning(stages=1, fraction=1.0), **settings)
        .merge()
        .state_dict()
    )
    where = lt.methods.HalfFineTuning().targets
    full = run.fit(model, data, lt.methods.Full(targets=where), **settings).merge().state_dict()
    run.record("full", sum(int((whole[n] != full[n]).sum()) for n in before))


@CHECK.measures("earlier", "last", "everything")
def three_in_a_row(run: Any) -> None:
    import luthier as lt

    arms = {
        "half": lambda: lt.methods.HalfFineTuning(stages=1),
        "full_blocks": lambda: lt.methods.HalfFineTuning(stages=1, fraction=1.0),
        "everything": lt.methods.Full,
    }
    for name, make in arms.items():
        method = make()
        tried = {}
        for factor in (6.0, 20.0, 60.0):  # a small model takes larger steps than the default's
            rate = float(method.rate) * factor
            scores = run.once(
                [name, rate, "validation"], partial(sequence, run, method, rate, 0, "validation")
            )
            tried[rate] = sum(scores) / len(scores)
            run.trials.append(
                {"claim": "earlier", "arm": name, "rate": rate, "seed": 0, "validation": tried[rate]}
            )
            run.say(f"S068: {name} at rate {rate:.2g}: validation {scores}")
        rate = max(tried, key=lambda r: tried[r])
        for seed in range(3):
            scores = run.once([name, rate, seed, "test"], partial(sequence, run, method, rate, seed, "test"))
            earlier, last = sum(scores[:-1]) / (len(scores) - 1), scores[-1]
            run.say(f"S068: {name}, seed {seed}: earlier {earlier:.3f}, last {last:.3f}")
            if name == "everything":
                run.record("everything", earlier, arm="earlier", seed=seed, rate=rate)
                run.record("everything", last, arm="last", seed=seed, rate=rate)
            else:
                run.record("earlier", earlier, arm=name, seed=seed, rate=rate)
                run.record("last", last, arm=name, seed=seed, rate=rate)


def sequence(run: Any, method: Any, rate: float, seed: int, part: str) -> list[float]:
    """Exact match on each task's rows after tuning on all in turn, each stage from what the one before left."""
    from dataclasses import replace

    from luthier.host import Adaptation

    model = run.model("llama")
    data = [tasks(run, name).limit(train=ROWS, validation=60, test=150) for name in TASKS]
    fitted: Any = None
    for i, each in enumerate(data):
        unseen = replace(each, validation=None)
        fitted = run.fit(
            model, unseen, method, steps=STEPS, batch_size=16, rate=rate, seed=3 * seed + i, max_new_tokens=24
        )
        model = replace(model, base=fitted.merge(), _fingerprint=None)
    # what was tuned is in the weights: the adaptation to score with is one that has not begun, and changes nothing
    left = replace(fitted, model=model, adaptation=Adaptation.new(method, model.base))
    return [float(left.score(getattr(each, part))["exact_match"]) for each in data]
