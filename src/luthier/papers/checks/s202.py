"""S202, the unified view of adapters (He et al. 2022): two exact identities, and parallel against sequential placement."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats

CHECK = Check(
    "S202",
    "Prefix attention is a gated sum, LoRA is a scaled parallel adapter, and on a sequence-to-sequence task a parallel "
    "feed-forward adapter beats a sequential one of as many parameters.",
    claims=(
        Beats(
            "parallel",
            "the parallel feed-forward adapter scores above the sequential one of equal size, mean of 5 seeds",
            arm="parallel_adapter",
            over="adapter",
            seeds=5,
        ),
        AtMost(
            "gated_sum",
            "what attention with a prefix returns is (1 - lambda) Attn + lambda softmax(q P_k^T) P_v, in every layer "
            "(largest difference)",
            1e-5,
        ),
        AtMost(
            "lora",
            "LoRA is a linear parallel adapter on query and value (largest difference of hidden states, float64)",
            1e-6,
        ),
    ),
    covers=(
        "luthier.methods.adapters.bottleneck",
        "luthier.methods.prefixes.p_tuning_v2",
        "luthier.methods.low_rank.lora",
        "luthier.methods.low_rank.pair",
        "testbed:t5",
    ),
    data="identities on the embedded MiniLM; the comparison on the T5 testbed with a task that it was not pretrained on",
    against="the same adapter in sequence, at its own best of five learning rates",
    minutes=6,
)


@CHECK.measures("gated_sum", cheap=True)
def prefix_attention(run: Any) -> None:
    import torch
    from torch.nn import functional as F

    import luthier as lt
    from luthier.host import Adaptation, Adapted

    model = run.model("minilm")
    adapted: Any = Adapted(model.base)
    adapted.attach("main", Adaptation.new(lt.methods.PTuningV2(length=7), model.base, seed=1))
    seen: dict[tuple[int, str], torch.Tensor] = {}

    def keep(layer, name, first=False):
        def hook(module, args, out):
            seen[layer, name] = (args[0] if first else out).detach()

        return hook

    layers = model.base.encoder.layer
    for i, layer in enumerate(layers):
        own, after = layer.attention.self, layer.attention.output.dense
        for name in ("query", "key", "value"):
            getattr(own, name).register_forward_hook(keep(i, name))
        after.register_forward_hook(keep(i, "out", first=True))
    batch = {
        "input_ids": torch.randint(1000, 20000, (4, 13), generator=torch.Generator().manual_seed(0)),
        "attention_mask": torch.ones(4, 13, dtype=torch.long),
    }
    with torch.no_grad():
        adapted(batch)
    heads = model.base.config.num_attention_heads
    trained = adapted.adaptations["main"].state()
    for i in range(len(layers)):
        q, k, v = (
            seen[i, n].unflatten(-1, (heads, -1)).transpose(1, 2).double() for n in ("query", "key", "value")
        )
        (pk,), (pv,) = (
            [t for n, t in trained.items() if f"/{i}/" in n and n.endswith(x)] for x in ("K", "V")
        )
        pk, pv, scale = pk.double(), pv.double(), q.shape[-1] ** 0.5
        own = (q @ k.mT / scale).logsumexp(-1)
        share = torch.sigmoid((q @ pk.mT / scale).logsumexp(-1) - own)[..., None]
        alone = torch.softmax(q @ pk.mT / scale, -1) @ pv
        gated = (1 - share) * F.scaled_dot_product_attention(q, k, v) + share * alone
        got = seen[i, "out"].unflatten(-1, (heads, -1)).transpose(1, 2)
        run.record("gated_sum", (got - gated).abs().max(), arm=f"layer {i}")


@CHECK.measures("lora", cheap=True)
def lora_as_an_adapter(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted

    where, rank = "attention.query | attention.value", 4

    class Parallel(lt.methods.ParallelAdapter):
        reads = "attention.query"  # its input is the value's too

    model = run.model("minilm", dtype="float64")
    adapted: Any = Adapted(model.base)
    lora = Adaptation.new(lt.methods.LoRA(rank=rank, alpha=2 * rank, targets=where), model.base).to(
        torch.float64
    )
    adapter = Adaptation.new(
        Parallel(width=rank, scale=2.0, activation="none", targets=where), model.base
    ).to(torch.float64)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in lora.trainable().values():
            p.copy_(torch.randn(p.shape, generator=rng) * 0.05)
        mine = lora.state()
        adapter.load_state(
            {
                n: mine[n[: -len("down")] + "A"] if n.endswith("down")
                else mine[n[: -len("up")] + "B"] if n.endswith("up")
                else torch.zeros_like(t)
                for n, t in adapter.state().items()
            }
        )  # fmt: skip
        batch = {"input_ids": torch.randint(1000, 20000, (4, 13), generator=rng)}
        base = adapted(batch).hidden
        outputs = []
        for name, made in (("lora", lora), ("adapter", adapter)):
            adapted.attach(name, made)
            with adapted.using(name):
                outputs.append(adapted(batch).hidden)
    if torch.allclose(outputs[0], base, atol=1e-2):
        raise RuntimeError("the update changes nothing, so that equality would show nothing")
    run.record("lora", (outputs[0] - outputs[1]).abs().max())


@CHECK.measures("parallel")
def placement(run: Any) -> None:
    import luthier as lt
    from luthier.models.testbeds.tasks import as_text2text

    model, data = run.model("t5"), as_text2text(run.data("departments"))
    arms = {"parallel_adapter": lt.methods.ParallelAdapter(width=16), "adapter": lt.methods.Adapter(width=16)}
    run.compare(
        "parallel",
        model,
        data,
        arms,
        seeds=range(5),
        rates=(1 / 3, 1, 3, 9, 27),
        steps=200,
        batch_size=16,
        max_new_tokens=8,
    )
