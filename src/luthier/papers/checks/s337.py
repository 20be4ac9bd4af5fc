"""S337, DiffuseKronA (Marjit et al. 2024): what a Kronecker update of a linear weight is, counts and reaches."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, AtMost, Equals

CHECK = Check(
    "S337",
    "A Kronecker product as the update of a linear weight needs no product on activations, merges, trains a1 a2 + b1 b2 numbers, and has "
    "a higher rank than a LoRA of more numbers.",
    claims=(
        AtMost(
            "fast",
            "the product on activations equals torch.kron of the factors, a1 != a2 and b1 != b2 (largest difference, fp32)",
            1e-5,
        ),
        AtMost(
            "merged", "merged equals attached, of the largest output (fp32, the Llama and ViT testbeds)", 1e-5
        ),
        Equals("count", "a1 a2 + b1 b2 numbers train per layer (difference)", 0),
        AtLeast(
            "rank", "numeric rank of the update above that of a LoRA which trains more numbers (least)", 1
        ),
    ),
    covers=(
        "luthier.methods.kronecker.diffusekrona",
        "luthier.sources.kronecker",
        "testbed:llama",
        "testbed:vit",
    ),
    data="identities on drawn factors of several shapes, and on the Llama and ViT testbeds",
    against="torch.kron; the smallest LoRA that trains more numbers",
    minutes=0.2,
    notes="The catalogue's other statement is not measured: that on a small diffusion UNet the final loss suffers less than LoRA's from a learning "
    "rate four times off. There is no pretrained diffusion testbed yet, so the row stays partial.",
    whole=False,
)


@CHECK.measures("fast", "rank", cheap=True)
def a_product_that_is_never_made(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host.part import T

    rng = torch.Generator().manual_seed(0)
    for outputs, inputs, a1, a2 in ((1280, 1280, 64, 8), (384, 768, 8, 16), (96, 640, 2, 32)):
        part = lt.methods.DiffuseKronA(a1=a1, a2=a2)
        t = T(
            A=torch.randn(a1, a2, generator=rng) / a2**0.5,
            B=torch.randn(outputs // a1, inputs // a2, generator=rng) / (inputs // a2) ** 0.5,
        )
        dense = torch.kron(t.A, t.B)
        x = torch.randn(16, inputs, generator=rng)
        arm = f"{outputs} x {inputs}, A {a1} x {a2}"
        run.record("fast", (part.shortcut(x, torch.zeros(()), t) - x @ dense.T).abs().max(), arm=arm)
        rank = int(torch.linalg.matrix_rank(part.delta(None, t).double()))
        numbers = t.A.numel() + t.B.numel()
        lora = next(r for r in range(1, min(outputs, inputs)) if r * (outputs + inputs) > numbers)
        run.record("rank", rank - lora, arm=arm)


@CHECK.measures("merged", "count", cheap=True)
def in_a_model(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted

    rng = torch.Generator().manual_seed(0)
    for name in ("llama", "vit"):
        base = run.model(name).base
        made = Adaptation.new(lt.methods.DiffuseKronA(a1=16, a2=4), base)
        for at in made.at():
            s = at.site
            held = sum(v.numel() for v in at.values.values())
            run.record(
                "count", held - 16 * 4 - (s.out_features // 16) * (s.in_features // 4), arm=f"{name} {s.name}"
            )
        with torch.no_grad():
            for p in made.trainable().values():
                p.add_(0.05 * torch.randn(p.shape, generator=rng))
            if name == "vit":
                size, channels = base.config.image_size, base.config.num_channels
                batch = {"pixel_values": torch.randn(4, channels, size, size, generator=rng)}
            else:
                batch = {"input_ids": torch.randint(20, base.config.vocab_size, (4, 12), generator=rng)}
            model: Any = Adapted(base)
            read = lambda out: out.logits if out.logits is not None else out.hidden
            alone = read(model(batch))
            model.attach("main", made)
            attached = read(model(batch))
            model.merge("main")
            merged = read(model(batch))
        if torch.allclose(alone, attached, atol=1e-2):
            raise RuntimeError("the update changes nothing, so that equality would show nothing")
        run.record("merged", (merged - attached).abs().max() / attached.abs().max(), arm=name)
