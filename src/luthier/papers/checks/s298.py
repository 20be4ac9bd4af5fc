"""S298, scaled prompt tuning (2023): a prompt times a scale, for few shots of data to text."""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any

from luthier.papers.check import Check
from luthier.papers.checks.s282 import inputs
from luthier.papers.claims import AtMost, Equals, WithinError

CHECK = Check(
    "S298",
    "A scale that stays 1 is plain prompt tuning; trained, it is written into the prompt and costs next to no time; on 50 rows of data "
    "to text it lowers the loss over learning rates and is not worse at the best one.",
    claims=(
        WithinError(
            "grid",
            "development loss averaged over 5 learning rates: plain above scaled by more than one standard error, 5 seeds",
            arm="plain",
            over="scaled",
            errors=-1.0,
            seeds=5,
        ),
        WithinError(
            "best",
            "development loss at each one's best rate: scaled not above plain by more than one standard error, 5 seeds",
            arm="plain",
            over="scaled",
            seeds=5,
        ),
        AtMost("time", "time of a training step above the plain prompt's, as a share of it", 0.05),
        Equals(
            "plain",
            "with the scale frozen at 1 it is prompt tuning, start and 5 steps (largest difference)",
            0,
        ),
        AtMost("settled", "the folded prompt gives the same logits (largest difference, float32)", 1e-6),
    ),
    covers=(
        "luthier.methods.prompts.spt",
        "luthier.sources.scaled",
        "luthier.sources.settle",
        "luthier.papers.checks.s282",
        "testbed:llama",
        "testbed:t5",
    ),
    data="the Llama and T5 testbeds; 50 training and 100 development rows of E2E (meaning representations and one text each)",
    against="the same prompt without a scale, same start, rows, rates and seeds",
    minutes=25,
    notes="The figures of `grid` are means over the rates of one seed; the losses behind them are stored with them. The best rate "
    "of an arm is that of its lowest mean loss over the seeds, on the same development rows.",
)

ROWS, DEV, STEPS, LENGTH = 50, 100, 100, 20
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)


def arms(length: int = LENGTH) -> dict[str, Any]:
    import luthier as lt

    return {"plain": lt.methods.PromptTuning(length=length), "scaled": lt.methods.SPT(length=length)}


@CHECK.measures("plain", "settled", cheap=True)
def what_it_is(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.sources.scaled import Scaled
    from luthier.sources.settle import settled

    for name in ("llama", "t5"):
        model = run.model(name)
        batch, found = inputs(model, 3, 9), []
        adapted: Any = Adapted(model.base)
        for method in (
            lt.methods.PromptTuning(length=5),
            lt.methods.SPT(length=5, source=Scaled(trained=False)),
        ):
            made = Adaptation.new(method, model.base)
            with adapted.attached(made):
                trained = list(made.trainable().values())
                made.requires_grad_(False)
                for p in trained:
                    p.requires_grad_(True)
                optimiser = torch.optim.AdamW(trained, lr=0.1)
                for _ in range(5):
                    out = adapted(batch).logits
                    found.append(out.detach())
                    optimiser.zero_grad()
                    out.square().mean().backward()
                    optimiser.step()
        if torch.allclose(found[0], found[4], atol=1e-3):
            raise RuntimeError("five steps change nothing, so that equality would show nothing")
        run.record("plain", max((a - b).abs().max() for a, b in zip(found[:5], found[5:])), arm=name)

        scaled = Adaptation.new(lt.methods.SPT(length=5), model.base)
        with torch.no_grad():
            for p in scaled.trainable().values():
                p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
            both = []
            for made in (scaled, settled(scaled, model.base)):
                with adapted.attached(made):
                    both.append(adapted(batch).logits)
        run.record("settled", (both[0] - both[1]).abs().max(), arm=name)


@CHECK.measures("time")
def what_it_costs(run: Any) -> None:
    from luthier.papers.seconds import least_seconds

    model = run.model("t5")
    batch = inputs(model, 16, 64)
    best = least_seconds(model.base, batch, arms(), turns=30)
    run.record("time", best["scaled"] / best["plain"] - 1, **best)


@CHECK.measures("grid", "best")
def few_shots(run: Any) -> None:
    from luthier.data.load import load_data

    lines = (run.shared("e2e_nlg") / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[: ROWS + DEV]]
    share = ROWS / len(rows)
    data = load_data(
        ([r["mr"] for r in rows], [r["refs"][0] for r in rows]),
        kind="text2text",
        split=(share, 1 - share, 0),
        seed=0,
    )
    model, losses = run.model("t5"), {}
    for name, method in arms().items():
        for rate in RATES:
            for seed in range(5):
                curve = run.curve(
                    "grid",
                    f"{name} at {rate:g}",
                    model,
                    data,
                    method,
                    every=STEPS,
                    seed=seed,
                    rate=rate,
                    steps=STEPS,
                    batch_size=10,
                    max_new_tokens=8,
                )
                losses[name, rate, seed] = curve[-1][1]["loss"]
        best = min(RATES, key=lambda r: fmean(losses[name, r, s] for s in range(5)))
        for seed in range(5):
            all_rates = [losses[name, r, seed] for r in RATES]
            run.record("grid", fmean(all_rates), arm=name, seed=seed, losses=all_rates)
            run.record("best", losses[name, best, seed], arm=name, seed=seed, rate=best)
