"""S246, SoMA (Yun et al. 2024): minor components of the late blocks, and what they leave of a model on shifted images."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Equals

RANK, TOP = 8, 8
SETTINGS: dict[str, Any] = {"steps": 150, "batch_size": 32}
RATES = (1 / 3, 1.0, 3.0)
SEEDS = range(5)
SHIFTS = ("rotation", "colour", "noise")

CHECK = Check(
    "S246",
    "The smallest components train, the early blocks and the rest stay; on shifted images SoMA is at least as good as PiSSA and LoRA of "
    "equal rank and blocks with source accuracy within a point, and its update overlaps less with the largest directions.",
    claims=(
        Beats("target", "accuracy on shifted digits: at least PiSSA's, 5 seeds", arm="soma", over="pissa", ties=True, seeds=5),
        Beats("target_lora", "accuracy on shifted digits: at least LoRA's, 5 seeds", arm="soma", over="lora", ties=True, seeds=5),
        Beats("source", "accuracy on plain digits: within 1 point of PiSSA's", arm="soma", over="pissa", by=-0.01, ties=True, seeds=5),
        Beats("source_lora", "accuracy on plain digits: within 1 point of LoRA's", arm="soma", over="lora", by=-0.01, ties=True, seeds=5),
        Beats(
            "overlap",
            "share of the update in the 8 largest singular directions of both sides: PiSSA's above SoMA's",
            arm="pissa",
            over="soma",
            seeds=5,
        ),
        AtMost("whole", "W_res + B A less W at the start, over W's largest entry (largest difference)", 1e-5),
        AtMost("all", "at rank min(m, n): W_res over W's largest entry (largest entry)", 1e-5),
        AtMost("merged", "outputs of the merged model less the unmerged, after training (largest difference)", 1e-5),
        AtMost("decay", "the decay in force less its cosine from 0.05 to 1e-5 (largest difference)", 1e-12),
        Equals("frozen", "values of early blocks that training changed", 0),
    ),
    covers=(
        "luthier.methods.low_rank.soma",
        "luthier.methods.low_rank.pissa",
        "luthier.starts.singular",
        "luthier.signals.optimisers",
        "testbed:vit",
    ),
    data="the ViT testbed; scikit-learn's digits, and the test digits turned by 25 degrees, inverted, or with noise",
    against="PiSSA and LoRA at the same sites and rank, each arm at its own best of three rates by accuracy on plain validation digits",
    minutes=9,
    notes="The target accuracy is the mean over the three shifts. LoRA has no weight decay, which would not pull it to the base.",
)  # fmt: skip


def arms(model: Any) -> dict[str, Any]:
    """The three at the same sites: those that SoMA's frozen share leaves."""
    import luthier as lt
    from luthier.host.structure import structure_of

    soma = lt.methods.SoMA(rank=RANK)
    first = min(s.layer for s in soma.sites(structure_of(model.base)) if s.layer is not None)
    where: dict[str, Any] = {"rank": RANK, "targets": f"projections[{first}:]"}
    return {
        "soma": soma,
        "pissa": lt.methods.PiSSA(**where),
        "lora": lt.methods.LoRA(alpha=float(RANK), **where),
    }


@CHECK.measures("whole", "all", "merged", "decay", "frozen", cheap=True)
def components(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.host.adaptation import site_weight
    from luthier.host.places.factored import STANDS_FOR
    from luthier.starts.singular import factors_of
    from luthier.train.run import Run as Training

    model, data = run.model("vit"), run.data("digits").limit(train=96, validation=16, test=32)
    for rank, claim in ((RANK, "whole"), (None, "all")):
        for name in ("soma", "pissa"):
            for site in lt.methods.get(name)(rank=1).sites(Adapted(model.base).structure):
                w = site_weight(model.base, site)
                assert w is not None
                r = rank or min(w.shape)
                made = Adaptation.new(lt.methods.get(name)(rank=r, targets=site.name), model.base)
                (at,) = made.at()
                taken = at.part.delta(None, at.t(None)).detach()
                if claim == "whole":
                    up, down = factors_of(w, min(w.shape) - r, name == "soma")
                    off = (taken + up @ down - w).abs().max()
                else:
                    off = (w - taken).abs().max()
                run.record(claim, off / w.abs().max(), arm=f"{name}, {site.name}")
    found: list[float] = []
    real = Training.gradient_step

    def step(self: Any) -> None:
        real(self)
        found.append(max(g["weight_decay"] for g in self.optimiser.param_groups))

    before = {n: t.clone() for n, t in model.base.state_dict().items()}
    Training.gradient_step = step  # type: ignore[method-assign]
    try:
        fitted = run.fit(model, data, lt.methods.SoMA(rank=RANK), steps=12, batch_size=16)
    finally:
        Training.gradient_step = real  # type: ignore[method-assign]
    for i, value in enumerate(found):
        want = 1e-5 + (0.05 - 1e-5) * (1 + math.cos(math.pi * i / 11)) / 2
        run.record("decay", abs(value - want), arm=f"step {i}")
    adapted: Any = Adapted(model.base)
    adapted.attach("main", fitted.adaptation)
    pixels = torch.randn(
        4, 3, *[model.base.config.image_size] * 2, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        token = STANDS_FOR.set(
            0.0
        )  # beside the weight: folded into it, the two would be the same computation
        apart = adapted({"pixel_values": pixels}).logits
        STANDS_FOR.reset(token)
        adapted.merge("main")
        run.record("merged", (adapted({"pixel_values": pixels}).logits - apart).abs().max())
        first = min(at.site.layer for at in fitted.adaptation.at())
        changed = [n for n, t in model.base.state_dict().items() if not torch.equal(t, before[n])]
        early = [n for n in changed if any(f".{i}." in n for i in range(first))]
        if len(changed) != len(fitted.adaptation.at()):
            raise RuntimeError("merging changed other weights than were tuned, or not all of them")
        run.record("frozen", len(early), of_changed=len(changed))


def shifted(split: Any, how: str) -> Any:
    """The same digits, turned, inverted or with noise; the same each time."""
    import numpy as np
    from scipy.ndimage import rotate

    from luthier.data.split import Split

    images = split.inputs.astype(np.float64)
    if how == "rotation":
        images = rotate(images, 25, axes=(1, 2), reshape=False, order=1)
    elif how == "colour":
        images = 255 - images
    else:
        images = images + np.random.default_rng(0).normal(0, 60, images.shape)
    return Split(np.clip(np.rint(images), 0, 255).astype(np.uint8), split.targets)


def scores(run: Any, method: Any, rate: float, seed: int) -> dict[str, float]:
    """Accuracy after a fit on plain and shifted test digits, and the overlap."""
    import torch

    from luthier.host.adaptation import site_weight

    model, data = run.model("vit"), run.data("digits")
    fitted = run.fit(model, data, method, rate=rate, seed=seed, **SETTINGS)
    found = {"source": float(fitted.score(data.test)["accuracy"])}
    each = [float(fitted.score(shifted(data.test, how))["accuracy"]) for how in SHIFTS]
    found |= dict(zip(SHIFTS, each, strict=True)) | {"target": sum(each) / len(each)}
    inside = whole = 0.0
    for at in fitted.adaptation.at():
        w = site_weight(model.base, at.site)
        assert w is not None
        change = at.part.delta(w, at.t(None)).detach()
        if at.part.start.anchored:
            change = change - at.part.delta(w, at.t(None, None, at.anchor)).detach()
        u, _, vh = torch.linalg.svd(w)
        inside += float((u[:, :TOP].T @ change @ vh[:TOP].T).square().sum())
        whole += float(change.square().sum())
    return {**found, "overlap": inside / whole}


@CHECK.measures("target", "target_lora", "source", "source_lora", "overlap")
def shifts(run: Any) -> None:
    for name, method in arms(run.model("vit")).items():
        rate = run.best_rate(
            "target", name, run.model("vit"), run.data("digits"), method, rates=RATES, **SETTINGS
        )
        for seed in SEEDS:
            got = run.once([name, rate, seed], partial(scores, run, method, rate, seed))
            run.say(f"S246: {name}, seed {seed}: source {got['source']:.4f}, target {got['target']:.4f}")
            about = {k: got[k] for k in SHIFTS}
            for claim, value in (("target", got["target"]), ("source", got["source"])):
                for one in (claim, f"{claim}_lora"):
                    run.record(one, value, arm=name, seed=seed, rate=rate, **about)
            run.record("overlap", got["overlap"], arm=name, seed=seed, rate=rate)
