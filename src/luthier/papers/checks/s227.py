"""S227, MEET (2023): controls of preferences that are trained before the model is, and after."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, Beats, Equals

PREFERENCES = ("brief", "polite")
STEPS, LENGTH, SEEDS = 240, 5, range(3)
CONTROL_RATE, MODEL_RATES = 3e-2, (1e-4, 3e-4, 1e-3)
ROWS = {"train": 800, "validation": 100, "test": 200}
SETTINGS: dict[str, Any] = {"batch_size": 16}
ASKED = 4
"""Words of a prompt."""

CHECK = Check(
    "S227",
    "Controls that are trained first beside a frozen model, and then with it, are better told apart than controls trained with the "
    "model from the start: the margin of the negative log-likelihood is larger at equal steps.",
    claims=(
        Beats(
            "margin",
            "NLL of a response under the other preference's control less that under its own, held-out prompts, mean of both: stage 1 "
            "first above joint training, mean of 3 seeds",
            arm="meet",
            over="joint",
        ),
        AtLeast("positive", "the same margin with stage 1 first, smallest of 3 seeds", 1e-6),
        Equals("equal", "the margin where both controls hold the same numbers", 0),
        Equals("frozen", "values of the model that differ after stage 1", 0),
    ),
    covers=(
        "luthier.methods.prompts.meet",
        "luthier.methods.prompts.prompt_and_model",
        "luthier.methods.sparse.parameters",
        "luthier.sources.by_label",
        "luthier.sources.labels",
        "testbed:gpt2",
    ),
    data="the GPT-2 testbed; prompts of four words, each answered in one of two styles, of which only the row's label tells",
    against="joint training of model and controls from random control tokens for as many steps in all, each arm with the same rates "
    "in stage 2, the model's chosen of three on validation by the joint arm",
    minutes=9,
    notes="The controls' rate is fixed; the model's rate of stage 2 is the same in both arms.",
)


def words(rng: random.Random) -> list[str]:
    from luthier.models.testbeds.words import THINGS

    return rng.sample(THINGS, ASKED)


def responses(asked: list[str]) -> dict[str, str]:
    """The same content in the two styles."""
    first, last = asked[0], asked[-1]
    return {"brief": f"{last} {first}", "polite": f"with pleasure: {first} and {last}, of course"}


def task() -> Any:
    """Every prompt in one style in training; in validation and test in both, one after the other."""
    import numpy as np

    from luthier.data.split import Data, Split
    from luthier.data.task import Task

    rng, parts, seen = random.Random(0), {}, set()
    for part, number in ROWS.items():
        inputs: list[str] = []
        targets: list[str] = []
        marks: list[str] = []
        while len(inputs) < number:
            asked = words(rng)
            if (text := " ".join(asked)) in seen:
                continue
            seen.add(text)
            said = responses(asked)
            for mark in [rng.choice(PREFERENCES)] if part == "train" else PREFERENCES:
                inputs.append(text)
                targets.append(said[mark])
                marks.append(mark)
        parts[part] = Split(inputs, targets, np.array([[m] for m in marks], dtype=str))
    kind = Task(
        kind="text2text", modality="text", input="prompt", label="response", metric="exact_match", attributes=("mark",)
    )  # fmt: skip
    return Data(parts["train"], parts["validation"], parts["test"], kind, "two styles")


def method(first: float, model_rate: float) -> Any:
    import luthier as lt

    return lt.methods.MEET(
        preferences=", ".join(PREFERENCES), length=LENGTH, first=first, model_rate=model_rate
    )


def margin(model: Any, adaptation: Any, split: Any, task: Any) -> float:
    """Mean over rows of NLL under the other preference's control less NLL under the row's own."""
    from dataclasses import replace

    import numpy as np

    from luthier.host import Adapted
    from luthier.signals.objectives import NextToken
    from luthier.train.batches import encode
    from luthier.train.predict import mean_loss

    swapped = np.array([[PREFERENCES[1 - PREFERENCES.index(m)]] for (m,) in split.attributes.tolist()])
    adapted: Any = Adapted(model.base)
    adapted.attach("main", adaptation)
    try:
        own, other = (
            mean_loss(adapted, encode(model.preprocess, replace(split, attributes=a), task), NextToken())
            for a in (split.attributes, swapped)
        )
    finally:
        adapted.detach("main")
    return other - own


@CHECK.measures("equal", "frozen", cheap=True)
def what_it_is(run: Any) -> None:
    import torch

    from luthier.host import Adaptation

    model, data = run.model("gpt2"), task()
    before = {n: t.clone() for n, t in model.base.state_dict().items()}
    moved: dict[str, int] = {}

    def watched(stage: Any) -> Any:
        def leave(r: Any) -> None:
            full = r.main.placed()[1]
            moved["model"] = sum(
                int((v != before[f"{at.site.path}.{k}"]).sum())
                for at in full.ats()
                for k, v in at.values.items()
            )
            moved["controls"] = int((r.main.placed()[0].ats()[0].values["P"] != first).sum())

        stage.leave = leave
        return stage

    made = method(0.5, MODEL_RATES[-1])
    first = Adaptation.new(made.control(), model.base).at()[0].values["P"].detach().clone()
    stages = made.phases()
    watched(stages[0])

    class Watched(type(made)):  # type: ignore[misc]
        def phases(self) -> Any:
            return stages

    options = {"preferences": made.preferences, "length": LENGTH, "first": 0.5, "model_rate": made.model_rate}
    fitted = run.fit(model, data.limit(train=64, validation=4), Watched(**options), steps=4, **SETTINGS)
    if not moved["controls"]:
        raise RuntimeError("stage 1 moves no control, so that a model that stays shows nothing")
    changed = sum(int((before[n] != t).sum()) for n, t in model.base.state_dict().items())
    run.record("frozen", moved["model"] + changed)

    table: Any = fitted.adaptation.placed()[0].ats()[0].values["P"]
    few = data.test.select(range(8))
    with torch.no_grad():
        table.copy_(torch.randn(table.shape, generator=torch.Generator().manual_seed(0)))
        if margin(model, fitted.adaptation, few, data.task) == 0:
            raise RuntimeError("controls change nothing, so that a margin of 0 would show nothing")
        table[1] = table[0]
    run.record("equal", margin(model, fitted.adaptation, few, data.task))


@CHECK.measures("margin", "positive")
def stages(run: Any) -> None:
    model, data = run.model("gpt2"), task()

    def fitted(first: float, model_rate: float, seed: int) -> Any:
        return run.fit(
            model, data, method(first, model_rate), seed=seed, rate=CONTROL_RATE, steps=STEPS, **SETTINGS
        )

    def chosen() -> float:
        found = {}
        for rate in MODEL_RATES:
            made = fitted(0.0, rate, 0)
            found[rate] = margin(model, made.adaptation, data.validation, data.task)
            run.say(f"S227: joint, model at rate {rate:g}: margin {found[rate]:.4f} on validation")
        return max(found, key=found.__getitem__)

    rate = float(run.once(["model rate"], chosen))
    for name, first in (("joint", 0.0), ("meet", 0.5)):
        for seed in SEEDS:

            def go(first: float, seed: int) -> float:
                made = fitted(first, rate, seed)
                return margin(model, made.adaptation, data.test, data.task)

            found = run.once(["margin", name, seed], partial(go, first, seed))
            run.say(f"S227: {name}, seed {seed}: margin {found:.4f}")
            run.record("margin", found, arm=name, seed=seed, model_rate=rate)
            if name == "meet":
                run.record("positive", found, seed=seed)
