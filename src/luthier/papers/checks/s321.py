"""S321, WaveFT (Bilican et al. 2025): what sparse wavelet coefficients make of a weight."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, AtMost, Equals, Reported

CHECK = Check(
    "S321",
    "A weight's change from p coefficients of a wavelet transform trains exactly p numbers, is as long as they are, gives them back, merges, "
    "and has a higher rank than a LoRA of as many numbers.",
    claims=(
        Equals(
            "count", "numbers that train beside p a layer (difference), p below and between LoRA's sizes", 0
        ),
        AtMost(
            "norm",
            "Haar, even sides: norm of the change over alpha times that of c, distance from 1 (float64)",
            1e-5,
        ),
        AtMost(
            "back",
            "Haar, even sides: its transform is alpha times the map, by an explicit matrix (float64)",
            1e-5,
        ),
        AtMost("merged", "merged equals attached, of the largest output (fp32)", 1e-5),
        AtLeast("rank", "numeric rank of a change above that of a LoRA of as many numbers (least)", 1),
        Reported(
            "ranks", "mean numeric rank of a change of as many numbers as LoRA has at rank 1, by transform"
        ),
    ),
    covers=(
        "luthier.methods.spectral.waveft",
        "luthier.methods.spectral.coefficients",
        "luthier.sources.transforms",
        "luthier.sources.seeded",
        "testbed:llama",
    ),
    data="the Llama testbed and weights of several even sides",
    against="a LoRA of as many numbers (only its rank, which is its option); random entries (transform=identity)",
    minutes=0.5,
    notes="The catalogue's other statement is not measured: that on a tiny diffusion model p coefficients below the size of a LoRA of rank 1 reach a "
    "lower validation loss than LoRA on fewer layers. There is no pretrained diffusion testbed yet, so the row stays partial. The "
    "transform back is written here as a matrix, since PyWavelets is not among the dependencies.",
    whole=False,
)


def haar(side: int) -> Any:
    """The orthogonal matrix of one level: sums of neighbours, then their differences, over sqrt(2)."""
    import torch

    made = torch.zeros(side, side, dtype=torch.float64)
    for k in range(side // 2):
        made[k, 2 * k] = made[k, 2 * k + 1] = made[side // 2 + k, 2 * k] = 2**-0.5
        made[side // 2 + k, 2 * k + 1] = -(2**-0.5)
    return made


@CHECK.measures("norm", "back", cheap=True)
def one_level_of_haar(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host.part import T
    from luthier.methods.spectral.coefficients import scattered
    from luthier.sources.seeded import positions

    rng = torch.Generator().manual_seed(0)
    for outputs, inputs in ((64, 64), (96, 34), (128, 512)):
        part = lt.methods.WaveFT(count=200)
        c = torch.randn(200, generator=rng, dtype=torch.float64)
        where = positions(200, outputs * inputs, rng)
        change = part.delta(torch.zeros(outputs, inputs), T(c=c, positions=where))
        arm = f"{outputs} x {inputs}"
        run.record("norm", (change.norm() / (part.alpha * c.norm()) - 1).abs(), arm=arm)
        back = haar(outputs) @ change @ haar(inputs).T
        run.record("back", (back - part.alpha * scattered(c, where, (outputs, inputs))).abs().max(), arm=arm)


@CHECK.measures("count", "merged", "rank", "ranks", cheap=True)
def in_a_model(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.host.adaptation import site_weight

    base = run.model("llama").base
    rng = torch.Generator().manual_seed(0)
    batch = {"input_ids": torch.randint(20, 200, (4, 12), generator=rng)}
    for count in (1, 37, 250, 1001):
        made = Adaptation.new(lt.methods.WaveFT(count=count), base)
        run.record("count", made.counts()["method"] - count * len(made.at()), arm=f"p = {count}")
    first = Adaptation.new(lt.methods.LoRA(rank=1, targets="attention.*"), base).at()
    count = min(a.site.in_features + a.site.out_features for a in first)
    for transform in ("wavelet", "fourier", "identity"):
        model: Any = Adapted(base)
        # the Fourier transform divides by the number of entries, the others do not
        scale = {"alpha": 300.0} if transform == "fourier" else {"alpha": 2.0}
        made = Adaptation.new(lt.methods.WaveFT(count=count, transform=transform, **scale), base)
        with torch.no_grad():
            for p in made.trainable().values():
                p.copy_(0.3 * torch.randn(p.shape, generator=rng))
            for at in made.at():
                found = int(torch.linalg.matrix_rank(at.part.delta(site_weight(base, at.site), at.t(None))))
                run.record("ranks", found, arm=transform)
                if transform == "wavelet":
                    run.record("rank", found - 1, arm=at.site.name)
            alone = model(batch).logits
            model.attach("main", made)
            attached = model(batch).logits
            model.merge("main")
            merged = model(batch).logits
            model.detach("main")
        if torch.allclose(alone, attached, atol=1e-2):
            raise RuntimeError("the change changes nothing, so that equality would show nothing")
        run.record("merged", (merged - attached).abs().max() / attached.abs().max(), arm=transform)
