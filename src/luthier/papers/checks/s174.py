"""S174, PEGO (Hu et al. 2024): updates that are kept apart, and what that is worth on a domain that training never saw."""

from __future__ import annotations

from functools import partial
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats

RANK, GROUP = 4, 4
SETTINGS: dict[str, Any] = {"steps": 100, "batch_size": 32}
RATES = (1 / 3, 1.0, 3.0)
SEEDS = range(5)
DOMAINS = ("plain", "rotation", "colour", "noise")
HELD_OUT = ("rotation", "noise")
ROWS = 200
"""Training rows of each domain."""

CHECK = Check(
    "S174",
    "With the two terms the members of a group stand at most half as near to each other and nearer to the weight's minor directions than "
    "without, and a domain that was held out is told apart better than with one LoRA of as many ranks.",
    claims=(
        AtMost("merged", "merged equals attached (largest difference of hidden states)", 1e-5),
        AtMost("start", "before training: largest difference from the base's hidden states", 0.0),
        Beats(
            "apart",
            "half of the mean |D_i D_j^T| / (|D_i| |D_j|) without the terms, over that with them, 5 seeds",
            arm="half without",
            over="with",
            ties=True,
            seeds=5,
        ),
        Beats("minor", "mean |W D_i^T| / (|W| |D_i|) without the terms above that with them, 5 seeds", arm="without", over="with", seeds=5),
        Beats("ood", "accuracy on a domain that was held out, mean of two such: above one LoRA of equal rank, 5 seeds", arm="pego", over="lora", seeds=5),
    ),
    covers=("luthier.methods.low_rank.pego", "luthier.methods.low_rank.pair", "luthier.papers.checks.s246", "testbed:vit"),
    data="the ViT testbed; scikit-learn's digits as they are, turned by 25 degrees, inverted, and with noise; the turned and the noisy ones "
    "are held out in turn",
    against="one LoRA of rank 16 at the same sites, which is the group without its terms, each arm at its own best of three rates by accuracy "
    "on validation rows of the domains that it trained on",
    minutes=10,
    notes="The group with weight 0 is that LoRA: one arm serves as both controls.",
)  # fmt: skip


def arms() -> dict[str, Any]:
    import luthier as lt

    group = {"rank": RANK, "group": GROUP}
    return {"pego": lt.methods.PEGO(**group), "lora": lt.methods.PEGO(weight=0.0, **group)}


@CHECK.measures("merged", "start", cheap=True)
def identities(run: Any) -> None:
    import torch

    from luthier.host import Adaptation, Adapted
    from luthier.host.places.factored import STANDS_FOR

    base = run.model("vit").base
    model: Any = Adapted(base)
    made = Adaptation.new(arms()["pego"], base)
    rng = torch.Generator().manual_seed(0)
    batch = {"pixel_values": torch.randn(4, 3, *[base.config.image_size] * 2, generator=rng)}
    with torch.no_grad():
        want = model(batch).hidden
        with model.attached(made):
            run.record("start", (model(batch).hidden - want).abs().max())
        for p in made.trainable().values():
            p.add_(0.05 * torch.randn(p.shape, generator=rng))
        model.attach("main", made)
        token = STANDS_FOR.set(
            0.0
        )  # beside the weight: folded into it, the two would be the same computation
        attached = model(batch).hidden
        STANDS_FOR.reset(token)
        model.merge("main")
        run.record("merged", (model(batch).hidden - attached).abs().max())
        if torch.allclose(attached, want, atol=1e-2):
            raise RuntimeError("the update changes nothing, so that equality would show nothing")


def domains(run: Any, held_out: str) -> tuple[Any, Any]:
    """(the other domains' rows together, the test rows of the one that is held out)."""
    from dataclasses import replace

    import numpy as np

    from luthier.data.split import Split
    from luthier.papers.checks.s246 import shifted

    data = run.data("digits")
    known = [d for d in DOMAINS if d != held_out]

    def seen(split: Any, how: str) -> Any:
        return split if how == "plain" else shifted(split, how)

    def together(split: Any, rows: int) -> Any:
        parts = [seen(split.select(range(i, len(split), len(known))), d) for i, d in enumerate(known)]
        return Split(
            np.concatenate([p.inputs[:rows] for p in parts]),
            np.concatenate([p.targets[:rows] for p in parts]),
        )

    train, validation = together(data.train, ROWS), together(data.validation, ROWS)
    return replace(data, train=train, validation=validation, test=None), seen(data.test, held_out)


def measured(run: Any, method: Any, held_out: str, rate: float, seed: int) -> dict[str, float]:
    """Accuracy on the domain that was held out, and how the products stand."""
    from luthier.host.adaptation import site_weight

    data, unseen = domains(run, held_out)
    fitted = run.fit(run.model("vit"), data, method, rate=rate, seed=seed, **SETTINGS)
    near, minor = [], []
    for at in fitted.adaptation.at():
        t = at.t(None)
        each = [(b @ a).detach() for b, a in zip(t.B.split(RANK, 1), t.A.split(RANK, 0), strict=True)]
        weight: Any = site_weight(run.model("vit").base, at.site)
        minor += [float((weight @ d.T).norm() / (weight.norm() * d.norm())) for d in each]
        near += [
            float((each[i] @ each[j].T).norm() / (each[i].norm() * each[j].norm()))
            for j in range(GROUP)
            for i in range(j)
        ]
    score = float(fitted.score(unseen)["accuracy"])
    return {"ood": score, "near": sum(near) / len(near), "minor": sum(minor) / len(minor)}


@CHECK.measures("apart", "minor", "ood")
def unseen_domains(run: Any) -> None:
    for name, method in arms().items():
        best = {}
        for held_out in HELD_OUT:
            data, _ = domains(run, held_out)
            arm = f"{name} without {held_out}"
            best[held_out] = run.best_rate(
                "ood", arm, run.model("vit"), data, method, rates=RATES, **SETTINGS
            )
        for seed in SEEDS:
            found = [
                run.once([name, h, best[h], seed], partial(measured, run, method, h, best[h], seed))
                for h in HELD_OUT
            ]
            near, minor, ood = (sum(f[k] for f in found) / len(found) for k in ("near", "minor", "ood"))
            run.say(f"S174: {name}, seed {seed}: held out {ood:.4f}, near {near:.4f}, minor {minor:.4f}")
            each = dict(zip(HELD_OUT, (f["ood"] for f in found), strict=True))
            run.record("ood", ood, arm=name, seed=seed, **each)
            without = name == "lora"
            run.record(
                "apart", near / 2 if without else near, arm="half without" if without else "with", seed=seed
            )
            run.record("minor", minor, arm="without" if without else "with", seed=seed)
