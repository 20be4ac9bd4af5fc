"""S122, intruder dimensions (Shuttleworth et al. 2024): what a LoRA of low rank leaves in its weights, and what it costs."""

from __future__ import annotations

from functools import partial
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Equals

TASK, BATCH = "order-a", 16
STEPS, HALVINGS = 260, 6
"""Of rank 1; of others that reach its accuracy in fewer steps, as often is the number halved towards it."""
ROWS = {"train": 1200, "validation": 100, "test": 400}
SEEDS = (0, 1, 2)
WHERE = "attention.* | mlp.*"
RANKS = (1, 8, 64)
RATES = {"full": (6.0, 20.0, 60.0)}
"""Multiples of a method's own rate; a small model takes larger steps than the default of full tuning."""
USUAL = (1.0, 3.0, 10.0)
SHRUNK = 0.7
SIDES = ((128, 128), (256, 128), (128, 384))

CHECK = Check(
    "S122",
    "LoRA of rank 1 leaves more singular vectors that resemble none of the pretrained ones than rank 64 and full tuning do at equal "
    "accuracy; shrinking them lowers the loss on what the model was pretrained on and costs little of the task.",
    claims=(
        Equals("unmodified", "intruders in a matrix that was not tuned", 0),
        Equals(
            "planted",
            "intruders after a random term of rank one was added, 2 to 5 times as large as the largest singular value (side at least 128)",
            1,
        ),
        Equals("removed", "intruders after their repair with scale 0", 0),
        Beats(
            "rank",
            "intruders of rank 1 are more than those of rank 64, mean of 3 seeds",
            arm="rank 1",
            over="rank 64",
        ),
        Beats(
            "full",
            "intruders of rank 1 are more than those of full tuning, mean of 3 seeds",
            arm="rank 1",
            over="full",
        ),
        AtMost("equal", "distance of an arm's mean exact match from that of rank 1 (largest)", 0.005),
        Beats(
            "control",
            "bits per token of documentation: shrinking the intruders of rank 1 lowers them, mean of 3 seeds",
            arm="tuned",
            over="repaired",
        ),
        Beats(
            "target",
            "exact match after shrinking the intruders: less than 1 point lost, mean of 3 seeds",
            arm="repaired",
            over="tuned",
            by=-0.01,
        ),
        Beats(
            "random",
            "bits per token of documentation: shrinking as many random top-10 directions does not lower them, mean of 3 seeds",
            arm="random",
            over="tuned",
            ties=True,
        ),
    ),
    covers=(
        "luthier.instruments.intruders",
        "luthier.methods.low_rank.lora",
        "luthier.methods.sparse.parameters",
        "testbed:llama",
    ),
    data="matrices drawn here, with flat spectra and with falling ones, and those of the MiniLM; the Llama testbed, a generated task, held-out documentation",
    against="LoRA of ranks 8 and 64 and full tuning of the same matrices, alpha = 2 rank, each at its own best of three learning rates; as many "
    "random directions of the ten largest",
    minutes=12,
    notes="Rank 1 trains longest; every other arm takes the number of steps whose validation score is nearest to rank 1's. Rank 8 is shown beside the others and is not judged by itself.",
)


@CHECK.measures("unmodified", "planted", "removed", cheap=True)
def one_term(run: Any) -> None:
    import torch

    from luthier.instruments.intruders import RESEMBLES, resemblance, scaled

    def count(before: Any, after: Any) -> int:
        return int((resemblance(before, after) < RESEMBLES).sum())

    pretrained = run.model("minilm").base.encoder.layer[0]
    for seed in SEEDS:
        rng = torch.Generator().manual_seed(seed)
        drawn = {}
        for shape in SIDES:
            flat = torch.randn(shape, generator=rng, dtype=torch.float64)
            u, _, v = torch.linalg.svd(flat, full_matrices=False)
            drawn[f"flat {shape}"] = flat
            drawn[f"falling {shape}"] = (u * torch.arange(1, len(v) + 1, dtype=u.dtype) ** -0.7) @ v
        drawn["query"] = pretrained.attention.self.query.weight.double()
        drawn["up"] = pretrained.intermediate.dense.weight.double()
        for name, weight in drawn.items():
            run.record("unmodified", count(weight, weight), arm=name, seed=seed)
            for times in (2.0, 3.5, 5.0):
                u, v = (torch.randn(n, generator=rng, dtype=torch.float64) for n in weight.shape)
                term = torch.outer(u / u.norm(), v / v.norm()) * torch.linalg.matrix_norm(weight, 2)
                tuned = weight + times * term
                which = (resemblance(weight, tuned) < RESEMBLES).nonzero().flatten().tolist()
                run.record("planted", len(which), arm=f"{name}, {times:g}", seed=seed)
                left = count(weight, scaled(tuned, which, 0.0))
                run.record("removed", left, arm=f"{name}, {times:g}", seed=seed)


def methods() -> dict[str, Any]:
    import luthier as lt

    ranks = {f"rank {r}": lt.methods.LoRA(rank=r, alpha=2.0 * r, targets=WHERE) for r in RANKS}
    return {**ranks, "full": lt.methods.Full(targets=WHERE)}


def tuned(run: Any, name: str, method: Any, rate: float, steps: int, seed: int) -> dict[str, float]:
    """Intruders and exact match of one fit; of rank 1 also what repairs do to the task and to the documentation."""
    from dataclasses import replace

    import torch

    from luthier.host import Adaptation
    from luthier.instruments.intruders import as_many_at_random, intruders, repaired
    from luthier.models.testbeds.measures import language_model

    model, data = run.model("llama"), run.data(TASK).limit(**ROWS)
    fitted = run.fit(model, data, method, seed=seed, rate=rate, steps=steps, batch_size=BATCH)
    merged = fitted.merge()
    found = intruders(model.base, merged, targets=WHERE)
    out = {"intruders": float(found.total), "tuned": fitted.score(data.test)["exact_match"]}
    if name != "rank 1":
        return out
    bases = {
        "repaired": repaired(merged, found.where, SHRUNK),
        "random": repaired(merged, as_many_at_random(found, torch.Generator().manual_seed(seed)), SHRUNK),
    }
    out["tuned, bits"] = language_model(replace(model, base=merged), quick=True)["bits per token"]
    for arm, base in bases.items():
        other = replace(model, base=base, _fingerprint=None)
        out[f"{arm}, bits"] = language_model(other, quick=True)["bits per token"]
        # the weights hold all of it: the adaptation to score with has not begun, and changes nothing
        scored = replace(fitted, model=other, adaptation=Adaptation.new(method, base))
        out[arm] = scored.score(data.test)["exact_match"]
    return out


def validated(run: Any, method: Any, rate: float, steps: int) -> float:
    """Exact match on the validation rows after so many steps."""
    model, data = run.model("llama"), run.data(TASK).limit(**ROWS)
    fitted = run.fit(model, data, method, seed=SEEDS[0], rate=rate, steps=steps, batch_size=BATCH)
    return float(fitted.score(data.validation)["exact_match"])


def steps_to(run: Any, name: str, method: Any, rate: float, wanted: float, whole: float) -> int:
    """The number of steps whose validation score is nearest to `wanted`, the smallest of equals; whole: the score after STEPS."""
    tried, low, high = {STEPS: whole}, 0, STEPS
    for _ in range(HALVINGS):
        steps = (low + high) // 2
        key = [name, rate, steps, "validation"]
        tried[steps] = run.once(key, partial(validated, run, method, rate, steps))
        run.say(f"S122: {name}, {steps} steps: validation {tried[steps]:.4f}")
        low, high = (steps, high) if tried[steps] < wanted else (low, steps)
    return min(tried, key=lambda s: (abs(tried[s] - wanted), s))


@CHECK.measures("rank", "full", "equal", "control", "target", "random")
def at_equal_accuracy(run: Any) -> None:
    model, data = run.model("llama"), run.data(TASK).limit(**ROWS)
    scores: dict[str, float] = {}
    wanted = 0.0
    for name, method in methods().items():
        settings: dict[str, Any] = {"steps": STEPS, "batch_size": BATCH}
        rates = RATES.get(name, USUAL)
        rate = run.best_rate("rank", name, model, data, method, seed=SEEDS[0], rates=rates, **settings)
        whole = next(t["validation"] for t in run.trials if t["arm"] == name and t["rate"] == rate)
        if name == "rank 1":
            wanted, steps = whole, STEPS
        else:
            steps = steps_to(run, name, method, rate, wanted, whole)
        each = []
        for seed in SEEDS:
            got = run.once([name, rate, steps, seed], partial(tuned, run, name, method, rate, steps, seed))
            run.say(
                f"S122: {name}, {steps} steps, seed {seed}: {got['intruders']:.0f} intruders, exact match {got['tuned']:.4f}"
            )
            each.append(got["tuned"])
            for claim in ("rank", "full"):
                run.record(claim, got["intruders"], arm=name, seed=seed, rate=rate, exact_match=got["tuned"])
            if name == "rank 1":
                for arm in ("tuned", "repaired"):
                    run.record("control", got[f"{arm}, bits"], arm=arm, seed=seed)
                    run.record("target", got[arm], arm=arm, seed=seed)
                for arm in ("tuned", "random"):
                    run.record("random", got[f"{arm}, bits"], arm=arm, seed=seed)
        scores[name] = sum(each) / len(each)
    for name, score in scores.items():
        run.record("equal", abs(score - scores["rank 1"]), arm=name, exact_match=score)
