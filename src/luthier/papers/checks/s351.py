"""S351, task prompt vectors (2024): what training added to a prompt, on other origins, in sums, and taken away."""

from __future__ import annotations

from functools import partial
from statistics import fmean
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, AtMost, Beats, Equals, Reported

LENGTH, STEPS, LOW_STEPS, LOW_SHOT, DRAWS, ROWS = 10, 100, 60, 48, 5, 150
ORIGINS = (0, 1, 2)
HALVES = {"garden and kitchen": (0, 1), "workshop and theatre": (2, 3)}
TASKS = (*HALVES, "verdicts")
SETTINGS: dict[str, Any] = {"batch_size": 16, "max_new_tokens": 8}

CHECK = Check(
    "S351",
    "What training adds to a prompt, T = P_t - P_0, works from other random origins, where a random matrix of its size does not; "
    "sums of two start a related task well; and prompts of other lengths or bases are refused.",
    claims=(
        AtLeast(
            "kept",
            "share of the gain over the untrained prompt that T keeps on another origin, mean of 3 origins (smallest of 3 tasks)",
            0.75,
        ),
        AtMost(
            "noise",
            "share of that gain that a random matrix of equal norm has, mean of 3 origins (largest of 3 tasks)",
            0.1,
        ),
        Beats(
            "low_shot",
            "exact match after tuning on 48 rows: from the sum of two related vectors above a random start by 2 points, mean of "
            "5 draws of rows and origins",
            arm="sum",
            over="random",
            by=0.02,
            ties=True,
            seeds=5,
        ),
        Beats(
            "minus",
            "exact match of the origin at least that of the origin less the vector, 3 tasks x 3 origins",
            arm="origin",
            over="minus",
            ties=True,
            seeds=9,
        ),
        AtMost("sum", "P_0 + T against the trained prompt (largest difference)", 1e-6),
        Equals("refused", "pairs of other lengths, kinds or bases that could be combined", 0),
        Reported("ratio", "how far training moves: |T| / |P_0|"),
        Reported("cosine", "between vectors of one task from different origins"),
    ),
    covers=(
        "luthier.merging.prompt_vectors",
        "luthier.sources.from_origin",
        "luthier.methods.prompts.task_prompt",
        "luthier.starts.carried",
        "luthier.train.carry",
        "testbed:llama",
        "testbed:gpt2",
    ),
    data="the Llama testbed and tasks that it was not pretrained on, answers written: two halves of `departments` and `verdicts`; "
    "the related task is the whole of `departments`",
    against="the untrained prompt, a random matrix of equal norm, and a random start at its own best of three learning rates",
    minutes=12,
    notes="The related task's four labels are those of the two halves together.",
)


def task(name: str) -> Any:
    """A task with written answers: `departments`, `verdicts`, or a half of the departments."""
    from dataclasses import replace

    from luthier.models.testbeds.tasks import as_text2text, data

    whole = data("departments" if name in HALVES else name)
    if name in HALVES:
        kept: dict[str, Any] = {}
        for part, split in whole.parts.items():
            targets: Any = split.targets
            kept[part] = split.select([i for i, y in enumerate(targets) if int(y) in HALVES[name]])
        whole = replace(whole, **kept)
    return as_text2text(whole) if whole.task.kind == "classification" else whole


@CHECK.measures("sum", "refused", cheap=True)
def values(run: Any) -> None:
    from luthier.errors import OptionError
    from luthier.host import Adaptation
    from luthier.merging.prompt_vectors import origin_of, prompt_of, prompt_vector
    from luthier.methods import make

    models = {name: run.model(name) for name in ("llama", "gpt2")}
    known = task("verdicts").limit(train=16)
    kinds = {
        "task_prompt": make("task_prompt", {"length": LENGTH}),
        "prompt_tuning": make("prompt_tuning", {"length": LENGTH}),
        "deep_prompt": make("deep_prompt", {"length": LENGTH}),
        "p_tuning_v2": make("p_tuning_v2", {"length": LENGTH}),
        "shorter": make("task_prompt", {"length": LENGTH - 1}),
    }
    found = {}
    for name, model in models.items():
        for kind, method in kinds.items():
            fitted = run.fit(model, known, method, steps=5, **SETTINGS)
            vector, origin, whole = prompt_vector(fitted), origin_of(fitted), prompt_of(fitted)
            if not vector.norm():
                raise RuntimeError("five steps change nothing, so that the sum would show nothing")
            worst = max(
                float((origin.values[site][k] + vector.values[site][k] - value).abs().max())
                for site, held in whole.values.items()
                for k, value in held.items()
            )
            run.record("sum", worst, arm=f"{name}, {kind}")
            found[name, kind] = vector
        lora = Adaptation.new(make("lora", {"rank": 2}), model.base)
        try:
            prompt_vector(lora, model)
            run.record("refused", 1, arm=f"{name}, lora")
        except OptionError:
            run.record("refused", 0, arm=f"{name}, lora")
    mine = found["llama", "task_prompt"]
    for key, other in found.items():
        if key in (("llama", "task_prompt"), ("llama", "prompt_tuning")):  # of one shape: they do combine
            _ = mine + other
            continue
        try:
            _ = mine + other
            run.record("refused", 1, arm=", ".join(key))
        except OptionError:
            run.record("refused", 0, arm=", ".join(key))


@CHECK.measures("kept", "noise", "low_shot", "minus", "ratio", "cosine")
def on_other_origins(run: Any) -> None:
    from dataclasses import replace

    from luthier.merging.prompt_vectors import Prompt, PromptVector, drawn_like, origin_of, prompt_vector
    from luthier.methods import make
    from luthier.train.beginning import new_adaptation
    from luthier.train.fitted import as_fitted
    from luthier.train.settings import Settings

    model, method = run.model("llama"), make("task_prompt", {"length": LENGTH})
    vectors: dict[tuple[str, int], PromptVector] = {}
    pair = 0
    for name in TASKS:
        data = task(name).limit(validation=ROWS)
        rate = run.best_rate("kept", name, model, data, method, steps=STEPS, **SETTINGS)
        test = data.test.select(range(min(ROWS, len(data.test))))
        fresh = new_adaptation(method, model, data, Settings(max_new_tokens=8), None, None)

        def score(vector: PromptVector, origin: Prompt, test: Any = test) -> float:
            return float(as_fitted(vector.on(origin), model).score(test)["exact_match"])

        def learn(seed: int, data: Any = data, rate: float = rate) -> Any:
            fitted = run.fit(model, data, method, seed=seed, rate=rate, steps=STEPS, **SETTINGS)
            held = prompt_vector(fitted).values
            return {site: {k: v.tolist() for k, v in values.items()} for site, values in held.items()}

        kept, noise = [], []
        for seed in ORIGINS:
            import torch

            values = run.once(["vector", name, seed], partial(learn, seed))
            tensors = {s: {k: torch.tensor(v) for k, v in held.items()} for s, held in values.items()}
            vectors[name, seed] = vector = PromptVector(tensors, model.fingerprint)
            own = drawn_like(fresh, seed, model)
            other = drawn_like(fresh, seed + 100, model)
            arms = {
                "origin": (vector * 0.0, own),
                "trained": (vector, own),
                "untrained": (vector * 0.0, other),
                "elsewhere": (vector, other),
                "noise": (vector.random_like(seed), other),
                "minus": (-vector, own),
            }
            scores = {
                arm: run.once(["score", name, seed, arm], partial(score, *given))
                for arm, given in arms.items()
            }
            gain = scores["trained"] - scores["origin"]
            if gain <= 0:
                raise RuntimeError(
                    f"{name}: the prompt learned nothing, so that no share of its gain can be kept"
                )
            kept.append((scores["elsewhere"] - scores["untrained"]) / gain)
            noise.append((scores["noise"] - scores["untrained"]) / gain)
            run.record("ratio", vector.norm() / own.norm(), arm=name, seed=seed)
            for arm in ("origin", "minus"):
                run.record("minus", scores[arm], arm=arm, seed=pair, task=name)
            pair += 1
        run.record("kept", fmean(kept), arm=name, shares=kept, rate=rate)
        run.record("noise", fmean(noise), arm=name, shares=noise)
        for a, b in ((0, 1), (0, 2), (1, 2)):
            run.record("cosine", vectors[name, a].cosine(vectors[name, b]), arm=name, seed=10 * a + b)

    whole = task("departments").limit(validation=ROWS)
    test = whole.test.select(range(ROWS))
    related = vectors[TASKS[0], 0] + vectors[TASKS[1], 0]

    def few(seed: int) -> Any:
        import random

        rows = random.Random(seed).sample(range(len(whole.train)), LOW_SHOT)
        return replace(whole, train=whole.train.select(sorted(rows)))

    def given(arm: str, seed: int) -> dict[str, Any]:
        made = new_adaptation(method, model, whole, Settings(seed=seed, max_new_tokens=8), None, None)
        start = {"after": related.on(origin_of(made, model))} if arm == "sum" else {}
        return {"steps": LOW_STEPS, **SETTINGS, **start}

    def tuned(arm: str, seed: int, rate: float) -> float:
        fitted = run.fit(model, few(seed), method, seed=seed, rate=rate, **given(arm, seed))
        return float(fitted.score(test)["exact_match"])

    for arm in ("sum", "random"):
        rate = run.best_rate("low_shot", arm, model, few(0), method, **given(arm, 0))
        for seed in range(DRAWS):
            found = run.once(["low_shot", arm, seed], partial(tuned, arm, seed, rate))
            run.record("low_shot", found, arm=arm, seed=seed, rate=rate)
