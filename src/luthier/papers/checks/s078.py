"""S078, AdapterFusion (Pfeiffer et al. 2021): attention over trained adapters, which stay as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Equals

MATCHING, OTHERS = "departments", ("verdicts", "pydocs")
SOURCE_ROWS, TARGET_ROWS = 800, 32
WIDTH = 32
SOURCE: dict[str, Any] = {"steps": 120, "batch_size": 16}
TARGET: dict[str, Any] = {"steps": 60, "batch_size": 16}
SEEDS = (0, 1, 2)

CHECK = Check(
    "S078",
    "A fusion of one adapter with V = I is that adapter; training it leaves the adapters as they were; of three it listens to the one "
    "that matches the target above its share, and with few rows it is no worse than the best single adapter.",
    claims=(
        AtMost("one", "one adapter and V = I: largest difference of the logits from that adapter's", 1e-5),
        Equals("frozen", "numbers of the adapters that differ after stage 2", 0),
        Beats(
            "mass",
            "mean attention on the matching adapter above 1/3, over test tokens and layers, mean of 3 seeds",
            arm="matching",
            over="even",
        ),
        Beats(
            "accuracy",
            "accuracy with 32 rows at least the best single adapter's, mean of 3 seeds",
            arm="fusion",
            over="best single",
            ties=True,
        ),
    ),
    covers=(
        "luthier.methods.adapters.adapter_fusion",
        "luthier.methods.adapters.bottleneck",
        "luthier.instruments.fusion",
    ),
    data="MiniLM; adapters of the embedded departments, verdicts and pydocs; the target: two groups of departments, 32 other sentences",
    against="each of the three adapters, frozen, under a head trained on the target, and an adapter trained on the target alone; equal "
    "steps, each at its own best of three learning rates",
    minutes=9,
    notes="The best single adapter is the one of the highest mean on the test rows, which favours it.",
)


@CHECK.measures("one", "frozen", cheap=True)
def what_a_fusion_leaves_alone(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted

    model, data = run.model("minilm"), run.data(MATCHING)
    batch = model.preprocess.collate(model.preprocess.encode(data.train.inputs[:8]))
    settings = {"steps": 3, "batch_size": 8, "seed": 1}
    trained = {n: run.fit(model, data, lt.methods.Adapter(width=8), rate=0.1, **{**settings, "seed": i})
               for i, n in enumerate("ab")}  # fmt: skip

    def logits(adaptation: Any) -> Any:
        with torch.no_grad(), Adapted(model.base).attached(adaptation) as adapted:
            return adapted.eval()(batch).logits

    alone = trained["a"].adaptation
    fusion = Adaptation.new(
        lt.methods.AdapterFusion(), model.base, head=alone.head, members={"a": trained["a"].adaptation}
    )
    with torch.no_grad():
        for at in fusion.at():
            at.values["V"].copy_(torch.eye(len(at.values["V"])))
        for name, value in alone.placed()[1].ats()[0].values.items():
            fusion.placed()[1].ats()[0].values[name].copy_(value)
    want = logits(alone)
    if torch.allclose(want, logits(trained["b"].adaptation), atol=1e-2):
        raise RuntimeError("another adapter says the same, so that equality would show nothing")
    run.record("one", (logits(fusion) - want).abs().max())

    before = {n: {k: v.clone() for k, v in t.adaptation.state().items()} for n, t in trained.items()}
    fused = run.fit(model, data, lt.methods.AdapterFusion(), members=trained, **settings).adaptation
    after = {n: fused.members[n].state() for n in trained}
    run.record(
        "frozen", sum(int((after[n][k] != v).sum()) for n, held in before.items() for k, v in held.items())
    )


def bare(split: Any) -> Any:
    """Sentences without the question and the choices that some tasks put behind them."""
    return replace(split, inputs=[text.partition(" Which ")[0] for text in split.inputs])


def sources(run: Any) -> dict[str, Any]:
    return {
        name: replace(found, train=bare(found.train.select(range(SOURCE_ROWS))), validation=None, test=None)
        for name in (MATCHING, *OTHERS)
        for found in (run.data(name),)
    }


def target(run: Any) -> Any:
    """Two groups of departments; training sentences that the source has not seen."""
    whole = run.data(MATCHING)

    def grouped(split: Any) -> Any:
        return replace(bare(split), targets=split.targets % 2)

    task = whole.task.model_copy(update={"labels": ("outside", "inside"), "label": "place"})
    few = whole.train.select(range(SOURCE_ROWS, SOURCE_ROWS + TARGET_ROWS))
    return replace(
        whole, train=grouped(few), validation=grouped(whole.validation), test=grouped(whole.test), task=task
    )


def head_alone(rate: float) -> tuple[Any, ...]:
    """A plan in which only the output head trains, at the run's rate or else this one."""
    from luthier.host.part import Phase
    from luthier.signals.optimisers import adamw

    def optimiser(named: Any, run: Any) -> Any:
        return adamw(named, run, rate=run.recipe.rate or rate)

    return (Phase("head", trains=r"^main\.parts\.1\.", optimiser=optimiser),)


@CHECK.measures("mass", "accuracy")
def what_a_fusion_is_worth(run: Any) -> None:
    from statistics import fmean

    import luthier as lt
    from luthier.instruments.fusion import weights

    class Alone(lt.methods.AdapterFusion):
        """One adapter as it is: only the head trains."""

        rate = 1e-2

        def phases(self):  # type: ignore[no-untyped-def]
            return head_alone(self.rate)

    model, data = run.model("minilm"), target(run)
    trained = {
        name: run.fit(model, one, lt.methods.Adapter(width=WIDTH), **SOURCE)
        for name, one in sources(run).items()
    }
    singles: dict[str, Any] = {n: (Alone(), {"members": {n: t}}) for n, t in trained.items()}
    singles["own"] = lt.methods.Adapter(width=WIDTH)
    found = run.compare("accuracy", model, data, singles, seeds=SEEDS, **TARGET)
    best = max(found, key=lambda name: fmean(found[name].values()))
    for seed, score in found[best].items():
        run.record("accuracy", score, arm="best single", seed=seed, which=best)
    fusion = lt.methods.AdapterFusion()
    run.compare("accuracy", model, data, {"fusion": (fusion, {"members": trained})}, seeds=SEEDS, **TARGET)
    rate = next(r.about["rate"] for r in run.records if r.arm == "fusion")

    def listened(seed: int) -> float:
        fitted = run.fit(model, data, fusion, members=trained, seed=seed, rate=rate, **TARGET)
        return fmean(site[MATCHING] for site in weights(fitted, data.test).values())

    for seed in SEEDS:
        run.record("mass", run.once(["mass", seed], lambda s=seed: listened(s)), arm="matching", seed=seed)
        run.record("mass", 1 / len(trained), arm="even", seed=seed)
