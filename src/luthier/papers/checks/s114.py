"""S114, Selective LoRA (Bafghi et al. 2025): gates that are exact, close one after the other, and what a few open ones keep."""

from __future__ import annotations

import random
from functools import partial
from itertools import pairwise
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Equals, Reported

RANK, ACTIVE = 8, 0.25
SETTINGS: dict[str, Any] = {"steps": 150, "batch_size": 32}
RATES = (1 / 3, 1.0, 3.0)
SEEDS = range(3)
PENALTIES = (0.03, 0.3, 3.0, 30.0)
TARGETS = "projections"

CHECK = Check(
    "S114",
    "A closed gate contributes nothing; a larger penalty leaves fewer updates, from all to under a tenth; a quarter of them is within two "
    "points of LoRA on the target and better on what training did not see, also than as many at random sites.",
    claims=(
        AtMost("closed", "outputs with closed updates less those without them (largest difference)", 1e-6),
        AtMost("merged", "merged equals gated (largest difference)", 1e-5),
        Equals("rises", "steps of the penalty at which more updates stay open than at the one before", 0),
        Equals("all", "updates that are closed at the smallest penalty, mean of 3 seeds", 0),
        AtMost("few", "share of the updates that is open at the largest penalty, mean of 3 seeds", 0.1),
        Reported("open", "share of the updates that stays open, by penalty"),
        Beats("target", "accuracy on plain digits: within 2 points of full LoRA's, 3 seeds", arm="selective", over="lora", by=-0.02, ties=True),
        Beats("ood", "accuracy on shifted digits: above full LoRA's, 3 seeds", arm="selective", over="lora"),
        Beats("random", "accuracy on shifted digits: above as many updates at random sites, 3 seeds", arm="selective", over="random"),
    ),
    covers=(
        "luthier.methods.low_rank.selective_lora",
        "luthier.methods.low_rank.lora",
        "luthier.methods.low_rank.pair",
        "luthier.papers.checks.s246",
        "testbed:vit",
    ),
    data="the ViT testbed; scikit-learn's digits, and the test digits turned by 25 degrees, inverted, or with noise",
    against="LoRA at all the sites, and at a random quarter of them, each arm at its own best of three rates by accuracy on plain "
    "validation digits",
    minutes=10,
    notes="The accuracy on shifted digits is the mean over the three shifts; the paper has CLIP and natural shifts.",
)  # fmt: skip


@CHECK.measures("closed", "merged", cheap=True)
def gates(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.host.places.factored import STANDS_FOR

    base = run.model("vit").base
    model: Any = Adapted(base)
    made = Adaptation.new(lt.methods.SelectiveLoRA(rank=RANK, targets=TARGETS), base)
    rng = torch.Generator().manual_seed(0)
    batch = {"pixel_values": torch.randn(4, 3, *[base.config.image_size] * 2, generator=rng)}
    with torch.no_grad():
        for i, at in enumerate(made.at()):
            for name, p in at.values.items():
                p.add_(0.05 * torch.randn(p.shape, generator=rng)) if name != "s" else p.fill_(0.5 * (i % 2))
        want = model(batch).hidden
        token = STANDS_FOR.set(
            0.0
        )  # beside the weight: folded into it, the two would be the same computation
        with model.attached(made):
            gated = model(batch).hidden
        names = [at.site.name for i, at in enumerate(made.at()) if i % 2]
        alone = Adaptation.new(lt.methods.LoRA(rank=RANK, targets=" | ".join(names)), base)
        open_ones = {at.site.name: at for at in made.at()}
        for at in alone.at():
            for name in ("A", "B"):
                at.values[name].copy_(open_ones[at.site.name].values[name])
        with model.attached(alone):
            run.record("closed", (model(batch).hidden - gated).abs().max())
        STANDS_FOR.reset(token)
        model.attach("main", made)
        model.merge("main")
        run.record("merged", (model(batch).hidden - gated).abs().max())
        if torch.allclose(gated, want, atol=1e-2):
            raise RuntimeError("the updates change nothing, so that equality would show nothing")


def open_share(run: Any, penalty: float, seed: int) -> float:
    """Share of the updates that a run with this penalty leaves open."""
    import luthier as lt
    from luthier.errors import OptionError

    method = lt.methods.SelectiveLoRA(rank=RANK, targets=TARGETS, penalty=penalty, choose=1.0)
    try:
        fitted = run.fit(run.model("vit"), run.data("digits"), method, seed=seed, **SETTINGS)
    except OptionError as error:
        if "no gate is open" not in str(error):
            raise
        return 0.0
    ats = fitted.adaptation.at()
    return sum(at.layout["rank"] > 0 for at in ats) / len(ats)


@CHECK.measures("rises", "all", "few", "open")
def penalties(run: Any) -> None:
    means = []
    for penalty in PENALTIES:
        found = [run.once(["open", penalty, s], partial(open_share, run, penalty, s)) for s in SEEDS]
        means.append(sum(found) / len(found))
        run.say(f"S114: penalty {penalty:g}: {means[-1]:.2f} of the updates stay open")
        run.record("open", means[-1], arm=f"{penalty:g}")
    run.record("rises", sum(b > a for a, b in pairwise(means)))
    run.record("all", 1 - means[0])
    run.record("few", means[-1])


def arms(run: Any, seed: int) -> dict[str, Any]:
    import luthier as lt
    from luthier.host import Adaptation

    whole = lt.methods.LoRA(rank=RANK, targets=TARGETS)
    names = [at.site.name for at in Adaptation.new(whole, run.model("vit").base).at()]
    drawn = sorted(random.Random(seed).sample(names, max(1, round(ACTIVE * len(names)))))
    return {
        "lora": whole,
        "selective": lt.methods.SelectiveLoRA(rank=RANK, targets=TARGETS, active=ACTIVE),
        "random": lt.methods.LoRA(rank=RANK, targets=" | ".join(drawn)),
    }


def accuracy(run: Any, name: str, rate: float, seed: int) -> dict[str, float]:
    """On plain and shifted test digits."""
    from luthier.papers.checks.s246 import SHIFTS, shifted

    data = run.data("digits")
    fitted = run.fit(run.model("vit"), data, arms(run, seed)[name], rate=rate, seed=seed, **SETTINGS)
    each = {how: float(fitted.score(shifted(data.test, how))["accuracy"]) for how in SHIFTS}
    plain = float(fitted.score(data.test)["accuracy"])
    return {"plain": plain, **each, "ood": sum(each.values()) / len(each)}


@CHECK.measures("target", "ood", "random")
def a_quarter(run: Any) -> None:
    for name, method in arms(run, 0).items():
        rate = run.best_rate(
            "ood", name, run.model("vit"), run.data("digits"), method, rates=RATES, **SETTINGS
        )
        for seed in SEEDS:
            got = run.once([name, rate, seed], partial(accuracy, run, name, rate, seed))
            run.say(f"S114: {name}, seed {seed}: plain {got['plain']:.4f}, shifted {got['ood']:.4f}")
            if name != "random":
                run.record("target", got["plain"], arm=name, seed=seed, rate=rate)
                run.record("ood", got["ood"], arm=name, seed=seed, rate=rate)
            if name != "lora":
                run.record("random", got["ood"], arm=name, seed=seed, rate=rate)
