"""S190, RandLoRA (Albert et al. 2025): rank that LoRA does not have at as many parameters, and where it pays."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, AtMost, Beats, Equals

TASK, STEPS, RANK = "order-a", 60, 32
SIDE, PIECE, FITTING = 64, 8, 300

CHECK = Check(
    "S190",
    "RandLoRA's update reaches full rank where LoRA's of as many parameters stays at its own, needs no stored bases, and fits a target of "
    "flat spectrum better than the best LoRA of as many parameters but a steep one worse.",
    claims=(
        AtLeast("rank", "numeric rank of a trained update, as a share of the smaller side (least)", 0.9),
        Equals("lora", "layers whose trained LoRA, of no fewer parameters, has another rank than its own", 0),
        AtMost("merged", "merged equals attached, of the largest output (fp32)", 1e-5),
        Equals(
            "saved", "values of the output that differ after saving seed and diagonals and loading them", 0
        ),
        AtMost("file", "bytes of the tensors' file, its header left out, over those of what trains", 1.05),
        Beats(
            "flat",
            "share of a random orthogonal target that is left over: LoRA's above RandLoRA's, 3 targets",
            arm="lora",
            over="randlora",
        ),
        Beats(
            "steep",
            "share of a target with singular values 1/i that is left over: RandLoRA's above LoRA's, 3 targets",
            arm="randlora",
            over="lora",
        ),
    ),
    covers=(
        "luthier.methods.low_rank.randlora",
        "luthier.methods.low_rank.lora",
        "luthier.methods.low_rank.pair",
        "luthier.sources.seeded",
        "testbed:llama",
    ),
    data="the Llama testbed; random targets of 64 x 64",
    against="a LoRA trained alike, with at least as many parameters; of targets the best LoRA with at least as many, the truncated singular value decomposition",
    minutes=2,
)


@CHECK.measures("merged", "saved", "file", cheap=True)
def seed_and_diagonals(run: Any) -> None:
    import tempfile
    from pathlib import Path

    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.host.files import load, save

    base = run.model("llama").base
    rng = torch.Generator().manual_seed(0)
    batch = {"input_ids": torch.randint(20, 200, (4, 12), generator=rng)}
    for basis in ("uniform", "ternary"):
        model: Any = Adapted(base)
        made = Adaptation.new(lt.methods.RandLoRA(rank=RANK, basis=basis), base, seed=5)
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            for p in made.trainable().values():
                p.add_(0.02 * torch.randn(p.shape, generator=rng))
            alone = model(batch).logits
            save(made, Path(folder, "a"), "base")
            written = Path(folder, "a", "tensors.safetensors").read_bytes()
            header = 8 + int.from_bytes(written[:8], "little")
            trained = sum(p.numel() * p.element_size() for p in made.trainable().values())
            run.record("file", (len(written) - header) / trained, arm=basis)
            with model.attached(made):
                attached = model(batch).logits
            with model.attached(load(Path(folder, "a"), base, "base")):
                run.record("saved", (model(batch).logits != attached).sum(), arm=basis)
            model.attach("main", made)
            model.merge("main")
            merged = model(batch).logits
            model.detach("main")
        if torch.allclose(alone, attached, atol=1e-2):
            raise RuntimeError("the update changes nothing, so that equality would show nothing")
        run.record("merged", (merged - attached).abs().max() / attached.abs().max(), arm=basis)


@CHECK.measures("flat", "steep", cheap=True)
def where_rank_pays(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation

    for seed in range(3):
        rng = torch.Generator().manual_seed(seed)
        one, two = (
            torch.linalg.qr(torch.randn(SIDE, SIDE, generator=rng, dtype=torch.float64)).Q for _ in range(2)
        )
        steep = one * torch.arange(1, SIDE + 1, dtype=torch.float64).reciprocal() @ two.T
        for claim, target in (("flat", one), ("steep", steep)):
            layer = torch.nn.Sequential(torch.nn.Linear(SIDE, SIDE)).double().requires_grad_(False)
            part = lt.methods.RandLoRA(rank=PIECE, targets="linear", seed=seed)
            made = Adaptation.new(part, layer).double()
            at, trained = made.at()[0], list(made.trainable().values())
            with torch.no_grad():
                for p in trained:  # away from the point where all of them are zero
                    p.add_(0.01 * torch.randn(p.shape, generator=rng, dtype=p.dtype))
            optimiser = torch.optim.LBFGS(trained, max_iter=FITTING, line_search_fn="strong_wolfe")

            def left(at: Any = at, part: Any = part, target: Any = target) -> torch.Tensor:
                return (part.delta(target, at.t(None)) - target).square().sum() / target.square().sum()

            def closure(optimiser: Any = optimiser, left: Any = left) -> torch.Tensor:
                optimiser.zero_grad()
                loss = left()
                loss.backward()
                return loss  # type: ignore[no-any-return]

            optimiser.step(closure)
            run.record(claim, left(), arm="randlora", seed=seed)
            rank = -(-sum(p.numel() for p in trained) // (2 * SIDE))  # of at least as many parameters
            sigma = torch.linalg.svdvals(target).square()
            run.record(claim, sigma[rank:].sum() / sigma.sum(), arm="lora", seed=seed)


@CHECK.measures("rank", "lora")
def rank_of_what_is_trained(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host.adaptation import site_weight

    model, data = run.model("llama"), run.data(TASK).limit(validation=20)
    targets = {"targets": "attention.*"}
    full = run.fit(model, data, lt.methods.RandLoRA(rank=RANK, **targets), steps=STEPS, batch_size=16)
    numbers = full.adaptation.counts()["method"]
    per_rank = sum(a.site.in_features + a.site.out_features for a in full.adaptation.at())
    rank = -(-numbers // per_rank)
    low = run.fit(model, data, lt.methods.LoRA(rank=rank, **targets), steps=STEPS, batch_size=16)
    for claim, fitted in (("rank", full), ("lora", low)):
        for at in fitted.adaptation.at():
            with torch.no_grad():
                weight: Any = site_weight(model.base, at.site)
                found = int(torch.linalg.matrix_rank(at.part.delta(weight, at.t(None))))
            value = found / min(weight.shape) if claim == "rank" else int(found != rank)
            run.record(claim, value, arm=at.site.name)
