"""S147, SPT (He et al. 2023): squared gradients, the budget that they pay for, and what it reaches on images."""

from __future__ import annotations

from functools import partial
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, AtMost, Beats, Equals

NUMBERS, SIZE, STEPS, BATCHES = 12_288, 4, 150, 8
SEEDS = range(3)
FIXED = "*attention.query | *attention.value"

CHECK = Check(
    "S147",
    "Sensitivity is autograd's sum of squared batch gradients; the budget is kept and nine tenths of it used; what is not marked keeps its "
    "bits; merged equals unmerged; on images SPT is at least as good as LoRA at fixed positions with an equal budget, and better than a "
    "random allocation.",
    claims=(
        AtMost("sensitivity", "sensitivity less autograd's sum of squares, over the largest (largest difference)", 1e-6),
        AtMost("most", "trained numbers over the budget", 1.0),
        AtLeast("least", "trained numbers over the budget", 0.9),
        Equals("kept", "unmarked weights that training under weight decay changed", 0),
        AtMost("merged", "outputs of the merged model less the unmerged, over the largest (largest difference)", 1e-5),
        Beats("fixed", "accuracy on test digits: at least that of LoRA at query and value, 3 seeds", arm="spt", over="lora", ties=True),
        Beats("random", "accuracy on test digits: above a random allocation's, 3 seeds", arm="spt", over="random"),
    ),
    covers=(
        "luthier.methods.sparse.sensitivity_tuning",
        "luthier.methods.sparse.entries",
        "luthier.methods.mixed.noah",
        "luthier.selection.sensitivity",
        "luthier.methods.low_rank.lora",
        "luthier.methods.low_rank.pair",
        "testbed:vit",
    ),
    data="the ViT testbed; scikit-learn's digits",
    against="LoRA at query and value of the largest rank within the budget, and the same allocation from random scores, each arm at its own best of three rates by accuracy on validation digits",
    minutes=8,
    notes="A budget of 12,288 numbers, LoRA's at query and value with rank 6, and modules of rank 4: the testbed's matrices are 128 wide, the paper's 768.",
)  # fmt: skip


@CHECK.measures("sensitivity", "most", "least", "kept", "merged", cheap=True)
def allocation(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adapted
    from luthier.host.places.factored import STANDS_FOR
    from luthier.methods.sparse.sensitivity_tuning import SensitivityTuning

    model, data = run.model("vit"), run.data("digits").limit(train=96, validation=16, test=32)
    apart: dict[str, Any] = {}
    real = SensitivityTuning.sensitivity

    def watched(self: Any, training: Any) -> Any:
        """The same, and autograd's on the base's own weights, with the run's adaptation off."""
        found = real(self, training)
        own = {n: p for n, p in training.adapted.base.named_parameters() if n in found}
        want = {n: torch.zeros_like(p) for n, p in own.items()}
        for p in own.values():
            p.requires_grad_(True)
        entries = training.main.at(1)
        layouts = {a.site.name: a.layout for a in entries}
        held = {(a.site.name, n): v.detach().clone() for a in entries for n, v in a.values.items()}
        empty = {a.site.name: {"marked": 0, "of": {}} for a in entries}
        training.main.reform({"1": empty}, lambda placed, site, specs: {})
        for i in range(self.batches):
            loss = training.loss(training.batches.whole("train", i))
            for n, g in zip(own, torch.autograd.grad(loss, list(own.values())), strict=True):
                want[n] += g.square()
        training.main.reform(
            {"1": layouts}, lambda placed, site, specs: {n: held[site.name, n] for n in specs}
        )
        for p in own.values():
            p.requires_grad_(False)
        apart.update(found=found, want=want)
        return found

    SensitivityTuning.sensitivity = watched  # type: ignore[method-assign]
    try:
        method = lt.methods.SensitivityTuning(numbers=NUMBERS, size=SIZE, batches=4)
        fitted = run.fit(model, data, method, steps=8, batch_size=16, decay=0.1)
    finally:
        SensitivityTuning.sensitivity = real  # type: ignore[method-assign]
    largest = max(float(w.max()) for w in apart["want"].values())
    for n, s in apart["found"].items():
        run.record("sensitivity", (s - apart["want"][n]).abs().max() / largest, arm=n)
    trained = fitted.adaptation.counts()["method"]
    run.record("most", trained / NUMBERS)
    run.record("least", trained / NUMBERS)

    before = {n: p.detach().clone() for n, p in model.base.named_parameters()}
    lora, entries = fitted.adaptation.at(0), fitted.adaptation.at(1)
    free = {f"{a.site.path}.weight": None for a in lora if a.layout["size"]}
    free |= {f"{a.site.path}.{n}": a.values.get(f"{n}_at", None) for a in entries for n in a.layout["of"]}
    adapted: Any = Adapted(model.base)
    adapted.attach("main", fitted.adaptation)
    rng = torch.Generator().manual_seed(0)
    pixels = {"pixel_values": torch.randn(4, 3, *[model.base.config.image_size] * 2, generator=rng)}
    with torch.no_grad():
        token = STANDS_FOR.set(
            0.0
        )  # beside the weight: folded into it, the two would be the same computation
        unmerged = adapted(pixels).logits
        STANDS_FOR.reset(token)
        adapted.merge("main")
        merged = adapted(pixels).logits
        run.record("merged", (merged - unmerged).abs().max() / unmerged.abs().max())
        changed = wrong = 0
        for n, p in model.base.named_parameters():
            other = p.detach().ne(before[n]).flatten()
            changed += int(other.sum())
            if n in free and free[n] is None:
                continue
            if n in free:
                other[free[n]] = False
            wrong += int(other.sum())
        run.record("kept", wrong, changed=changed)
    if not changed:
        raise RuntimeError("training changed no weight, so that what is kept would show nothing")


def arms(model: Any) -> dict[str, Any]:
    """The three within one budget."""
    import luthier as lt
    from luthier.host.sizing import sized

    spt = {"numbers": NUMBERS, "size": SIZE, "batches": BATCHES}
    return {
        "spt": lt.methods.SensitivityTuning(**spt),
        "lora": sized(lt.methods.LoRA(targets=FIXED), model.base, NUMBERS),
        "random": lt.methods.SensitivityTuning(**spt, score="random"),
    }


def accuracy(run: Any, method: Any, rate: float, seed: int, split: str) -> float:
    data = run.data("digits")
    fitted = run.fit(run.model("vit"), data, method, steps=STEPS, batch_size=32, rate=rate, seed=seed)
    return float(fitted.score(getattr(data, split))["accuracy"])


@CHECK.measures("fixed", "random")
def images(run: Any) -> None:
    for name, method in arms(run.model("vit")).items():

        def validated(rate: float, method: Any = method) -> float:
            return accuracy(run, method, rate, 0, "validation")

        rate = run.best_of("fixed", name, validated, method.rate)
        for seed in SEEDS:
            got = run.once([name, rate, seed], partial(accuracy, run, method, rate, seed, "test"))
            run.say(f"S147: {name}, seed {seed}: {got:.4f}")
            for claim, other in (("fixed", "random"), ("random", "lora")):
                if name != other:
                    run.record(claim, got, arm=name, seed=seed, rate=rate)
