"""S299, residual prompt tuning (Razdaibiedina et al. 2023): what is thrown away after training, and what it is worth before."""

from __future__ import annotations

from functools import partial
from statistics import fmean, stdev
from typing import Any

from luthier.papers.check import Check
from luthier.papers.checks.s282 import inputs
from luthier.papers.claims import AtMost, Beats, Equals, WithinError

CHECK = Check(
    "S299",
    "A residual prompt is written out as a plain one; with 10 tokens it beats a plain prompt of 10 and is as good as one of 100, and "
    "it hangs less on the learning rate, for which it needs the skip.",
    claims=(
        Beats(
            "short",
            "accuracy of 10 residual tokens above that of 10 plain ones, mean of 3 seeds",
            arm="residual_10",
            over="plain_10",
        ),
        WithinError(
            "long",
            "accuracy of 10 residual tokens within one standard error of 100 plain ones, 3 seeds",
            arm="residual_10",
            over="plain_100",
        ),
        Beats(
            "steady",
            "standard deviation of accuracy over the learning rates 0.03, 0.3 and 3: plain above residual, 3 seeds",
            arm="plain_10",
            over="residual_10",
        ),
        Beats(
            "skip",
            "mean accuracy over these rates: with the skip above without, 3 seeds",
            arm="residual_10",
            over="no_skip",
        ),
        AtMost("settled", "the written-out prompt gives the same logits (largest difference, float32)", 1e-6),
        Equals(
            "plain",
            "with LayerNorm's gain and bias at 0 it is prompt tuning (largest difference of logits)",
            0,
        ),
    ),
    covers=(
        "luthier.methods.prompts.residual_prompt",
        "luthier.sources.residual",
        "luthier.sources.linear",
        "luthier.sources.settle",
        "luthier.papers.checks.s282",
        "testbed:llama",
        "testbed:t5",
    ),
    data="the Llama and T5 testbeds; the comparisons on T5 and a task that it was not pretrained on",
    against="plain prompts of 10 and 100 tokens, each at its own best of three learning rates; the same net without its skip",
    minutes=25,
    notes="The net is 64 wide, in proportion to the testbed. The figures of `steady` and `skip` are over rates of one seed; the "
    "accuracies behind them are stored with them.",
)

TASK, RATES = "verdicts", (0.03, 0.3, 3.0)
SETTINGS: dict[str, Any] = {"signal": "choices", "batch_size": 16, "steps": 150}


@CHECK.measures("settled", "plain", cheap=True)
def what_is_thrown_away(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.sources.residual import Residual
    from luthier.sources.settle import settled

    for name in ("llama", "t5"):
        model = run.model(name)
        none = lt.methods.ResidualPrompt(length=10, source=Residual(bottleneck=64, gain=0.0))
        made = Adaptation.new(
            lt.methods.ResidualPrompt(length=10, source=Residual(bottleneck=64)), model.base
        )
        with torch.no_grad():
            for p in made.trainable().values():
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        pairs = {
            "settled": (made, settled(made, model.base)),
            "plain": (
                Adaptation.new(none, model.base),
                Adaptation.new(lt.methods.PromptTuning(length=10), model.base),
            ),
        }
        for claim, pair in pairs.items():
            adapted: Any = Adapted(model.base)
            with torch.no_grad():
                alone, found = model.base(**inputs(model, 3, 9)).logits, []
                for each in pair:
                    with adapted.attached(each):
                        found.append(adapted(inputs(model, 3, 9)).logits)
            if torch.allclose(alone, found[0], atol=1e-3):
                raise RuntimeError("the prompt changes nothing, so that equality would show nothing")
            run.record(claim, (found[0] - found[1]).abs().max(), arm=name)


@CHECK.measures("short", "long")
def what_it_is_worth(run: Any) -> None:
    import luthier as lt
    from luthier.sources.residual import Residual

    arms = {
        "residual_10": lt.methods.ResidualPrompt(length=10, source=Residual(bottleneck=64)),
        "plain_10": lt.methods.PromptTuning(length=10),
        "plain_100": lt.methods.PromptTuning(length=100),
    }
    run.compare(("short", "long"), run.model("t5"), run.data(TASK), arms, **SETTINGS)


@CHECK.measures("steady", "skip")
def over_learning_rates(run: Any) -> None:
    import luthier as lt
    from luthier.sources.residual import Residual

    model, data = run.model("t5"), run.data(TASK)
    arms = {
        "residual_10": lt.methods.ResidualPrompt(length=10, source=Residual(bottleneck=64)),
        "plain_10": lt.methods.PromptTuning(length=10),
        "no_skip": lt.methods.ResidualPrompt(length=10, source=Residual(bottleneck=64, skip=False)),
    }

    def score(method: Any, seed: int, rate: float) -> float:
        fitted = run.fit(model, data, method, seed=seed, rate=rate, **SETTINGS)
        return float(fitted.score(data.test)["accuracy"])

    for seed in range(3):
        for name, method in arms.items():
            found = [
                run.once(["steady", name, rate, seed], partial(score, method, seed, rate)) for rate in RATES
            ]
            if name != "no_skip":
                run.record("steady", stdev(found), arm=name, seed=seed, accuracies=found)
            if name != "plain_10":
                run.record("skip", fmean(found), arm=name, seed=seed, accuracies=found)
