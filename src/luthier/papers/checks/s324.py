"""S324, PANDA (Zhong et al. 2022): what lambda = 0 is, whether the score says which prompt transfers, and what distilling is worth."""

from __future__ import annotations

from functools import partial
from statistics import fmean
from typing import Any

from luthier.papers.check import Check
from luthier.papers.checks.s351 import HALVES, task
from luthier.papers.claims import AtLeast, Beats, Equals

LENGTH, SOURCE_STEPS, STEPS, SHOTS, ROWS = 10, 120, 40, 64, 100
SEEDS, RATES = (0, 1, 2), (0.03, 0.1, 0.3)
SOURCES = (*HALVES, "order-a", "order-c")
TARGETS = ("departments", "verdicts", "order-b")
SETTINGS: dict[str, Any] = {"batch_size": 16, "max_new_tokens": 8}

CHECK = Check(
    "S324",
    "The score of transfer says which source's prompt helps a target, better than the prompts' own cosine; a student that learns from "
    "the source's prompt is at least as good as one that starts from it; and lambda = 0 is prompt tuning, bit for bit.",
    claims=(
        AtLeast(
            "spearman",
            "rank correlation of the score with vanilla transfer's gain over a random start, 12 pairs, mean gain of 3 seeds",
            0.4,
        ),
        Beats(
            "better",
            "that correlation, seed by seed: the score above the cosine of the prompts",
            arm="score",
            over="cosine",
        ),
        Beats(
            "panda",
            "exact match, mean of 12 pairs: PANDA at least vanilla transfer, 3 seeds",
            arm="panda",
            over="vanilla",
            ties=True,
        ),
        Equals(
            "random", "values that lambda = 0 makes other than prompt tuning from the same random start", 0
        ),
        Equals(
            "vanilla", "values that lambda = 0 from the source's prompt makes other than vanilla transfer", 0
        ),
        Equals("teacher", "values of the teacher that distilling changed", 0),
    ),
    covers=(
        "luthier.methods.prompts.panda",
        "luthier.methods.prompts.prompt",
        "luthier.signals.distillation",
        "luthier.signals.task_embedding",
        "luthier.instruments.transferability",
        "luthier.starts.carried",
        "luthier.train.carry",
        "luthier.papers.checks.s351",
        "testbed:llama",
        "testbed:t5",
    ),
    data="the Llama testbed and tasks that it was not pretrained on, answers written: two halves of `departments`, two orders of digits; "
    f"targets of {SHOTS} rows: the whole of `departments`, `verdicts`, a third order",
    against="vanilla transfer (the target starts at the source's prompt) and a random start, each at its own best of three learning rates",
    minutes=12,
    notes="Gain is the fall of the loss on validation rows: most exact matches of so short a training are 0. Prompts stand at the input. "
    "An arm's rate is chosen on the first pair.",
)


def method(name: str, **options: Any) -> Any:
    from luthier.methods import make

    return make(name, {"carrier": "input", "length": LENGTH, "start": "vocabulary", **options})


@CHECK.measures("random", "vanilla", "teacher", cheap=True)
def lambda_zero(run: Any) -> None:
    import torch

    from luthier.models.testbeds.tasks import data

    known = data("verdicts").limit(train=32, validation=4)
    given: dict[str, Any] = {"signal": "choices", "batch_size": 8, "steps": 3}
    for name in ("llama", "t5"):
        model = run.model(name)
        teacher = run.fit(model, known, method("prompt"), seed=9, **{**given, "steps": 5})
        before = {k: v.clone() for k, v in teacher.adaptation.state().items()}

        def trained(
            transfer: float | None,
            start: Any,
            *,
            model: Any = model,
            known: Any = known,
            given: Any = given,
            teacher: Any = teacher,
        ) -> Any:
            chosen = method("prompt") if transfer is None else method("panda", transfer=transfer, distil=10.0)
            more = {} if transfer is None else {"companions": {"teacher": teacher}}
            fitted = run.fit(model, known, chosen, after=start, **given, **more)
            return fitted.adaptation.at()[0].values["P"]

        for claim, start in (("random", None), ("vanilla", teacher)):
            plain, zero, one = (trained(transfer, start) for transfer in (None, 0.0, 1.0))
            if torch.equal(plain, one):
                raise RuntimeError("lambda = 1 changes nothing, so that equality at 0 would show nothing")
            run.record(claim, (plain != zero).sum(), arm=name)
        after = teacher.adaptation.state()
        run.record("teacher", sum(int((before[k] != v).sum()) for k, v in after.items()), arm=name)


def ranks(values: list[float]) -> list[float]:
    """Ranks from 0, equal values share the mean of theirs."""
    ordered = sorted(values)
    return [ordered.index(v) + (ordered.count(v) - 1) / 2 for v in values]


def spearman(a: list[float], b: list[float]) -> float:
    from statistics import correlation

    return correlation(ranks(a), ranks(b))


@CHECK.measures("spearman", "better", "panda")
def what_transfers(run: Any) -> None:
    import torch

    from luthier.instruments.transferability import transferability

    model = run.model("llama")
    sources: dict[str, Any] = {}
    for name in SOURCES:

        def source(name: str = name) -> Any:
            fitted = run.fit(
                model,
                task(name).limit(validation=16),
                method("prompt"),
                steps=SOURCE_STEPS,
                rate=0.1,
                **SETTINGS,
            )
            return fitted.adaptation.at()[0].values["P"].tolist()

        held = torch.tensor(run.once(["source", name], source))
        sources[name] = prompt_with(model, task(name), held)

    targets = {name: task(name).limit(train=SHOTS, validation=ROWS, test=ROWS) for name in TARGETS}
    first = {"after": sources[SOURCES[0]]}, {"companions": {"teacher": sources[SOURCES[0]]}}
    arms: dict[str, tuple[Any, dict[str, Any]]] = {
        "random": (method("prompt"), {}),
        "vanilla": (method("prompt"), first[0]),
        "panda": (method("panda", transfer=1.0), first[1]),
    }
    rate = {
        arm: run.best_rate(
            "panda",
            arm,
            model,
            targets[TARGETS[0]],
            made,
            rates=[r / made.rate for r in RATES],
            steps=STEPS,
            **more,
            **SETTINGS,
        )
        for arm, (made, more) in arms.items()
    }

    def fitted(arm: str, target: str, seed: int, source: str = "", weight: float = 0.0) -> dict[str, Any]:
        more: dict[str, Any] = {}
        made = method("prompt")
        if arm == "vanilla":
            more = {"after": sources[source]}
        elif arm == "panda":
            made, more = method("panda", transfer=weight), {"companions": {"teacher": sources[source]}}
        found = run.fit(
            model, targets[target], made, seed=seed, rate=rate[arm], steps=STEPS, **more, **SETTINGS
        )
        return {
            "loss": found.metrics["validation"]["loss"],
            "score": float(found.score(targets[target].test)["exact_match"]),
            "prompt": found.adaptation.at()[0].values["P"].tolist() if arm == "random" else None,
        }

    gains: dict[tuple[str, str], list[float]] = {}
    scored: dict[str, dict[tuple[str, str], list[float]]] = {"score": {}, "cosine": {}}
    for seed in SEEDS:
        exact: dict[str, list[float]] = {"panda": [], "vanilla": []}
        for target in TARGETS:
            alone = run.once(["random", target, seed], partial(fitted, "random", target, seed))
            mine = prompt_with(model, targets[target], torch.tensor(alone["prompt"]))
            near = transferability(model, targets[target], mine, sources, rows=SHOTS)
            for name in SOURCES:
                pair, found = (name, target), near[name]
                weight = max(0.0, found.similarity)
                told = {
                    arm: run.once([arm, *pair, seed], partial(fitted, arm, target, seed, name, weight))
                    for arm in exact
                }
                for arm, scores in exact.items():
                    scores.append(told[arm]["score"])
                gains.setdefault(pair, []).append(alone["loss"] - told["vanilla"]["loss"])
                scored["score"].setdefault(pair, []).append(found.similarity)
                scored["cosine"].setdefault(pair, []).append(found.prompt_cosine or 0.0)
        for arm, scores in exact.items():
            run.record("panda", fmean(scores), arm=arm, seed=seed, scores=scores, rate=rate[arm])
        now = [of[-1] for of in gains.values()]
        for arm, by_pair in scored.items():
            run.record("better", spearman([of[-1] for of in by_pair.values()], now), arm=arm, seed=seed)
    whole = spearman([fmean(of) for of in scored["score"].values()], [fmean(of) for of in gains.values()])
    run.record("spearman", whole, gains={", ".join(pair): fmean(of) for pair, of in gains.items()})


def prompt_with(model: Any, data: Any, values: Any) -> Any:
    """A prompt of these values, with the task of `data`."""
    import torch

    from luthier.train.beginning import new_adaptation
    from luthier.train.settings import Settings

    made = new_adaptation(method("prompt"), model, data, Settings(max_new_tokens=8), None, None)
    with torch.no_grad():
        made.at()[0].values["P"].copy_(values)
    return made
