"""S275, NTK-Attention (Liang et al. 2024): a prefix of any length as a matrix and a vector per head, what it costs and what it is worth."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, AtMost, Equals, Reported

LENGTHS = (16, 256, 4096)
SETTINGS: dict[str, Any] = {"signal": "choices", "batch_size": 16, "steps": 150}

CHECK = Check(
    "S275",
    "A long prefix as phi(Q) Z and phi(Q) k: nothing at zero, the prefix itself as the feature map grows, the same cost at every "
    "length, and on a task no worse than a prefix of 32 tokens by more than one standard error.",
    claims=(
        AtLeast(
            "accuracy",
            "mean difference of accuracy to P-tuning v2 of length 32, in its standard errors over 3 seeds",
            -1.0,
        ),
        AtMost("zero", "with Z = 0 and k = 0 it is the base's attention (largest difference)", 1e-6),
        AtMost("zero_large", "the same for logits of size 100 (largest difference)", 1e-6),
        Equals("moved", "tensors among Z and k that 10 steps leave where they were", 0),
        Equals(
            "falls", "degrees 1 to 6 of Taylor features at which the error to the prefix does not fall", 0
        ),
        AtMost("degree_6", "error to the prefix's attention with Taylor features of degree 6", 1e-4),
        Reported("features", "error to the prefix's attention by feature map"),
        AtMost("numbers", "trained numbers begun from 4096 tokens as a multiple of those from 16", 1.0),
        AtMost(
            "saved", "bytes saved for backward, begun from 4096 tokens, as a multiple of those from 16", 1.0
        ),
        AtMost(
            "time", "seconds of a forward pass, begun from 4096 tokens, as a multiple of those from 16", 1.5
        ),
        AtLeast("prefix_saved", "the same bytes for prefix tuning of 4096 tokens over 16", 2.0),
        AtLeast("prefix_time", "the same seconds for prefix tuning of 4096 tokens over 16", 2.0),
        Reported("gap", "accuracy of the two on the same rows"),
    ),
    covers=(
        "luthier.methods.prefixes.ntk_attention",
        "luthier.methods.prefixes.p_tuning_v2",
        "luthier.sources.kernel",
        "luthier.starts.prefix_kernel",
        "testbed:llama",
        "testbed:t5",
    ),
    data="the Llama testbed, and the T5 testbed on a task that it was not pretrained on; features on random prefixes",
    against="P-tuning v2 of 32 tokens at equal steps and its own best of three learning rates; its time and memory at every length",
    minutes=8,
    notes="Time is the least of several passes of one row of 64 tokens; bytes are what autograd keeps in the same pass, parameters left out.",
)


@CHECK.measures("zero", "zero_large", "moved", cheap=True)
def nothing_at_first(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.sources import kernel

    model = run.model("llama")
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(20, model.base.config.vocab_size, (3, 9), generator=rng)
    made = Adaptation.new(lt.methods.NTKAttention(), model.base)
    kept = {n: p.detach().clone() for n, p in made.trainable().items()}
    adapted: Any = Adapted(model.base)
    with torch.no_grad():
        for p in made.trainable().values():
            p.zero_()
        want = adapted({"input_ids": ids}).logits
        with adapted.attached(made):
            run.record("zero", (adapted({"input_ids": ids}).logits - want).abs().max())
        q, k, v = (torch.randn(4, 16, 32, generator=rng) for _ in range(3))
        for sign in (1, -1):
            scores = q @ k.mT
            scores = scores * (100 / scores.abs().max()) + (sign - 1) * 100
            out, none = scores.softmax(-1) @ v, torch.zeros(4, 16)
            got = kernel.joined(out, scores.logsumexp(-1), torch.zeros_like(out), none)
            run.record("zero_large", (got - out).abs().max(), arm=f"{scores.min():.0f} to {scores.max():.0f}")
        for n, p in made.trainable().items():
            p.copy_(kept[n])
    with adapted.attached(made):
        optimiser = torch.optim.AdamW(made.trainable().values(), lr=1e-3)
        for _ in range(10):
            optimiser.zero_grad()
            logits = adapted({"input_ids": ids}).logits
            torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
            optimiser.step()
    moved = {n: not torch.equal(p, kept[n]) for n, p in made.trainable().items()}
    run.record("moved", sum(not m for m in moved.values()), of=len(moved))


@CHECK.measures("falls", "degree_6", "features", cheap=True)
def feature_maps(run: Any) -> None:
    """Attention of 16 queries to 32 keys of a prefix and 8 of content, d = 4, every |q.k| / sqrt(d) at most 1."""
    import torch

    from luthier.sources import kernel

    for seed in range(3):
        rng = torch.Generator().manual_seed(seed)
        draw = [torch.randn(1, n, 4, dtype=torch.float64, generator=rng) for n in (16, 32, 32, 8, 8)]
        q, pk, pv, k, v = draw
        scaling = 0.5
        both = torch.cat([pk, k], 1)
        q = q / ((q @ both.mT).abs().max() * scaling)
        want = ((q @ both.mT) * scaling).softmax(-1) @ torch.cat([pv, v], 1)
        scores = (q @ k.mT) * scaling
        out, mass = scores.softmax(-1) @ v, scores.logsumexp(-1)
        errors = {}
        for degree in range(7):  # 0: elu
            number = kernel.count(4, degree)
            z, s = kernel.of_prefix(pk, pv, scaling, number)
            phi = kernel.features(q * scaling**0.5, number)
            got = kernel.joined(out, mass, phi @ z, (phi @ s[..., None])[..., 0])
            errors[degree] = float((got - want).abs().max())
            run.record("features", errors[degree], arm=f"taylor {degree}" if degree else "elu", seed=seed)
        run.record("falls", sum(errors[p + 1] >= errors[p] for p in range(1, 6)), seed=seed)
        run.record("degree_6", errors[6], seed=seed)


@CHECK.measures("numbers", "saved", "time", "prefix_saved", "prefix_time", cheap=True)
def what_it_costs(run: Any) -> None:
    import copy
    import time

    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.instruments.saved import saved
    from luthier.starts.prefix_kernel import PrefixKernel

    model = run.model("llama")
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(20, model.base.config.vocab_size, (1, 64), generator=rng)
    kinds = {
        "": lambda n: lt.methods.NTKAttention(start=PrefixKernel(length=n)),
        "prefix_": lambda n: lt.methods.PTuningV2(length=n),
    }
    given = {"input_ids": ids}
    for kind, method in kinds.items():
        made = {n: Adaptation.new(method(n), model.base) for n in LENGTHS}
        models: dict[int, Any] = {n: Adapted(copy.deepcopy(model.base)) for n in LENGTHS}
        found: dict[str, list[float]] = {"numbers": [], "saved": [], "time": []}
        for n, adapted in models.items():
            adapted.attach("main", made[n])
            with saved(
                [*adapted.base.parameters(), *adapted.base.buffers(), *made[n].parameters(), ids]
            ) as m:
                adapted(given).logits.sum()
            found["saved"].append(m.bytes)
            found["numbers"].append(sum(p.numel() for p in made[n].trainable().values()))
        took: dict[int, list[float]] = {n: [] for n in LENGTHS}
        with torch.no_grad():
            for _ in range(20):  # in turns, so that what else the machine does falls on all alike
                for n, adapted in models.items():
                    began = time.perf_counter()
                    adapted(given)
                    took[n].append(time.perf_counter() - began)
        found["time"] = [min(t) for t in took.values()]
        for claim, values in found.items():
            if kind + claim != "prefix_numbers":
                table = {str(n): v for n, v in zip(LENGTHS, values, strict=True)}
                run.record(kind + claim, values[-1] / values[0], **table)


@CHECK.measures("accuracy", "gap")
def on_a_task(run: Any) -> None:
    from statistics import fmean, stdev

    import luthier as lt

    arms = {"ntk_attention": lt.methods.NTKAttention(), "p_tuning_v2": lt.methods.PTuningV2(length=32)}
    found = run.compare("gap", run.model("t5"), run.data("verdicts"), arms, **SETTINGS)
    gaps = [found["ntk_attention"][s] - found["p_tuning_v2"][s] for s in found["ntk_attention"]]
    error = max(stdev(gaps) / len(gaps) ** 0.5, 1e-9)
    run.record("accuracy", fmean(gaps) / error, gaps=gaps)
