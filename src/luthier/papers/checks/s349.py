"""S349, InfoPrompt (Wu et al. 2023): what InfoNCE bounds, and what its two terms do for a prompt from few rows."""

from __future__ import annotations

import math
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Equals, Reported

ROWS, LENGTH, STEPS, EVERY, SEEDS = 64, 10, 100, 5, range(5)
TASKS: dict[str, tuple[str, ...]] = {
    "verdicts": (),
    "modules": ("dates", "network", "numbers"),
    "tools": ("debugging", "files", "text"),
}
"""Name -> topics of pydocs; none: the data set of that name."""
SETTINGS: dict[str, Any] = {"batch_size": 8}
NEGATIVES, TRUTHS = 63, (0.05, 0.2, 0.4, 0.6, 0.8, 0.99, 1.5, 2.5)
WITHOUT = "infoprompt representation=0 head=0 bottleneck=0"

CHECK = Check(
    "S349",
    "InfoNCE's bound is sound and near the truth below 1 nat; without its terms InfoPrompt is prompt tuning bit for bit; with them a "
    "prompt learns in fewer steps and with a smaller spread over seeds.",
    claims=(
        Beats(
            "steps",
            "steps to 90 % of plain prompt tuning's final accuracy: at least a quarter fewer, mean of 3 tasks x 5 seeds",
            arm="three_quarters_of_plain",
            over="infoprompt",
            ties=True,
            seeds=15,
        ),
        Beats(
            "spread",
            "standard deviation of the final accuracy over 5 seeds: plain above InfoPrompt, mean of 3 tasks",
            arm="plain",
            over="infoprompt",
        ),
        Reported("final", "final validation accuracy of both, 3 tasks x 5 seeds"),
        Equals("plain", "numbers that differ from plain prompt tuning's after 5 steps without the terms", 0),
        AtMost("bound", "the bound with 63 negatives less log 64, the largest of any critic's scale", 0),
        AtMost(
            "near", "distance of the bound from a mutual information below 1 nat, the optimal critic", 0.1
        ),
        Equals("rises", "the bound rises with the mutual information (1: it does)", 1),
        Equals("frozen", "gradients that reach the frozen model", 0),
    ),
    covers=(
        "luthier.signals.info_nce",
        "luthier.signals.info_prompt",
        "luthier.methods.info_head",
        "luthier.methods.prompts.prompt_tuning",
        "testbed:bert",
    ),
    data=f"the BERT testbed; a generated task, and twice three topics of Python's modules, {ROWS} rows of each",
    against="prompt tuning with a linear head; each arm at its own best of three learning rates on each task",
    minutes=10,
    notes="Plain means signal=auto: the same prompt and a linear head on the pooled state. An arm that does not reach the mark is "
    "counted with all its steps. Accuracies are those of 100 validation rows; no test row is touched.",
)


@CHECK.measures("bound", "near", "rises", cheap=True)
def what_info_nce_bounds(run: Any) -> None:
    import torch

    from luthier.signals.info_nce import info_nce, information

    found = []
    for true in TRUTHS:
        rho = math.sqrt(1 - math.exp(-2 * true))
        rng = torch.Generator().manual_seed(0)
        x, noise = torch.randn(2, 20_000, generator=rng, dtype=torch.float64)
        y = rho * x + math.sqrt(1 - rho**2) * noise
        others = torch.randn(20_000, NEGATIVES, generator=rng, dtype=torch.float64)

        def critic(x: Any, y: Any, rho: float = rho) -> Any:
            ratio = (y**2 - (y - rho * x) ** 2 / (1 - rho**2)) / 2
            return ratio - 0.5 * math.log(1 - rho**2)

        scores = critic(x, y), critic(x[:, None], others)
        for scale in (1.0, 30.0):
            bounds = information(info_nce(scale * scores[0], scale * scores[1]), NEGATIVES)
            run.record("bound", bounds.max() - math.log(NEGATIVES + 1), arm=f"{true} nats, scale {scale:g}")
            if scale == 1.0:
                found.append(float(bounds.mean()))
        if true < 1:
            run.record("near", abs(found[-1] - true), arm=f"{true} nats")
    run.record("rises", found == sorted(found))


@CHECK.measures("plain", "frozen", cheap=True)
def what_is_left_without_the_terms(run: Any) -> None:
    import torch

    import luthier as lt

    model, data = run.model("bert"), run.data("verdicts").limit(train=64, validation=16, test=16)
    for p in model.base.parameters():
        p.grad = None
    prompt = lt.methods.PromptTuning(length=LENGTH)
    made = {
        signal: run.fit(model, data, prompt, steps=5, signal=signal, **SETTINGS).adaptation
        for signal in ("auto", WITHOUT, "infoprompt")
    }
    plain, whole = (made[signal].at()[0].values["P"] for signal in ("auto", "infoprompt"))
    if torch.equal(plain, whole):
        raise RuntimeError("the terms change nothing, so that equality without them would show nothing")
    pairs = zip(made["auto"].state().values(), made[WITHOUT].state().values(), strict=True)
    run.record("plain", sum(int((a != b).sum()) for a, b in pairs))
    run.record("frozen", sum(p.grad is not None for p in model.base.parameters()))


@CHECK.measures("steps", "spread", "final")
def from_few_rows(run: Any) -> None:
    from dataclasses import replace
    from statistics import stdev

    import luthier as lt

    model, prompt = run.model("bert"), lt.methods.PromptTuning(length=LENGTH)
    room = model.preprocess.max_length - LENGTH  # the model's positions hold the prompt too
    model = replace(model, preprocess=model.preprocess.with_settings(max_length=room))
    for t, task in enumerate(TASKS):
        data = few(run, task)
        curves: dict[str, list[Any]] = {}
        for arm, signal in (("plain", "auto"), ("infoprompt", "infoprompt")):
            own = {**SETTINGS, "signal": signal, "steps": STEPS}
            rate = run.best_rate("steps", f"{task}, {arm}", model, data, prompt, **own)
            curves[arm] = [
                run.curve(
                    "steps", f"{task}, {arm}", model, data, prompt, every=EVERY, seed=seed, rate=rate, **own
                )
                for seed in SEEDS
            ]
        final = {arm: [c[-1][1]["accuracy"] for c in each] for arm, each in curves.items()}
        for i, seed in enumerate(SEEDS):
            mark = 0.9 * final["plain"][i]
            plain, informed = (reached(each[i], mark) for each in curves.values())
            about = {"task": task, "mark": round(mark, 4)}
            run.record(
                "steps", 0.75 * plain, arm="three_quarters_of_plain", seed=len(SEEDS) * t + seed, **about
            )
            run.record("steps", informed, arm="infoprompt", seed=len(SEEDS) * t + seed, **about)
            for arm, scores in final.items():
                run.record("final", scores[i], arm=arm, seed=len(SEEDS) * t + seed, task=task)
            run.say(f"S349: {task}, seed {seed}: {plain} steps plain, {informed} with the terms")
        for arm, scores in final.items():
            run.record("spread", stdev(scores), arm=arm, seed=t, task=task)


def few(run: Any, task: str) -> Any:
    """The first rows of a task."""
    from dataclasses import replace

    import numpy as np

    topics = TASKS[task]
    data = run.data("pydocs" if topics else task)
    if topics:
        which = [data.task.labels.index(topic) for topic in topics]

        def of(split: Any) -> Any:
            kept = split.select([i for i, t in enumerate(split.targets) if t in which])
            return type(split)(kept.inputs, np.array([which.index(t) for t in kept.targets], dtype=np.int64))

        kind = data.task.model_copy(update={"labels": topics})
        data = replace(data, train=of(data.train), validation=of(data.validation), test=None, task=kind)
    return data.limit(train=ROWS, validation=100)


def reached(curve: list[Any], mark: float) -> int:
    """The first step at which the accuracy is at the mark; all steps where it never is."""
    return int(next((step for step, scores in curve if scores["accuracy"] >= mark), STEPS))
