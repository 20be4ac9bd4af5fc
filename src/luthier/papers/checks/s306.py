"""S306, SUPMER (Pan et al. 2023): what the regulator does to a gradient, and what a start that unlabelled text taught is worth."""

from __future__ import annotations

from functools import partial
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, AtMost, Beats, Equals, Reported

LENGTH, SHOTS, STEPS, DRAWS = 20, 16, 20, range(5)
OUTER, TASKS_A_STEP, ROWS, CLUSTERS, SENTENCES = 300, 2, 8, 24, 2400
SETTINGS: dict[str, Any] = {"signal": "choices", "batch_size": 8, "steps": STEPS}
TASKS = ("verdicts", "departments", "pairs")
"""Two generated data sets, and whether two things are of one kind."""

CHECK = Check(
    "S306",
    "The regulator leaves a gradient under a gate of one and keeps its rows' norms under a gate of zero; meta-training moves the start "
    "and the regulator alone; and with 16 rows a prompt that begins with them is better than one from random vectors or from words.",
    claims=(
        Beats(
            "random",
            "accuracy from 16 rows at a fixed number of steps: meta-learned start and regulator above random vectors by 2 points, mean of "
            "3 tasks x 5 draws",
            arm="supmer",
            over="random",
            by=0.02,
            ties=True,
            seeds=15,
        ),
        Beats(
            "vocabulary",
            "accuracy from 16 rows at a fixed number of steps: meta-learned start and regulator above sampled words by 2 points, mean of "
            "3 tasks x 5 draws",
            arm="supmer",
            over="vocabulary",
            by=0.02,
            ties=True,
            seeds=15,
        ),
        Reported("start", "accuracy of the meta-learned start without the regulator, and with it"),
        AtMost("one", "psi(g) under a gate of one: largest difference from g", 1e-6),
        AtMost(
            "step", "the inner step under a gate of one: largest difference from plain gradient descent", 1e-6
        ),
        AtMost("norm", "psi(g) under a gate of zero: largest difference of a row's norm from its own", 1e-5),
        Equals("reached", "tensors with a gradient that are neither the prompt nor the regulator's", 0),
        AtLeast(
            "both", "tensors of the prompt and of the regulator with a gradient, as a share of theirs", 1.0
        ),
        Equals("alone", "lambda = 1: difference that another second task makes to the query's loss", 0),
    ),
    covers=(
        "luthier.signals.regulator",
        "luthier.methods.prompts.supmer",
        "luthier.meta.pseudo_tasks",
        "luthier.meta.initialise",
        "luthier.host.following",
        "testbed:t5",
    ),
    data="the T5 testbed; unlabelled: generated sentences about things and opinions, clustered by MiniLM's embeddings; downstream: two "
    "generated data sets and pairs of things, 16 rows of each draw",
    against="the same prompt from random vectors and from sampled rows of the vocabulary, each arm at its own best of three rates on "
    "each task; the meta-learned start without the regulator, reported",
    minutes=10,
    notes="The T5 has one and a half million parameters. Draws are other rows; a rate is chosen on the first draw by 100 validation rows. "
    "The unlabelled sentences are drawn anew, with other names and places, and none of a downstream test is among them.",
)


def unlabelled(held: set[str]) -> list[str]:
    """Sentences about things of twelve kinds, and opinions, none of them in `held`."""
    import random

    from luthier.models.testbeds.tasks import JUDGED, NEAR, _sentence
    from luthier.models.testbeds.words import BAD, GOOD, KINDS, THINGS

    rng = random.Random("unlabelled")
    found: dict[str, None] = {}
    kinds = list(KINDS)
    while len(found) < SENTENCES:
        if len(found) % 3:
            made = _sentence(rng, rng.choice(NEAR), rng.choice(KINDS[rng.choice(kinds)]))
        else:
            made = _sentence(rng, rng.choice(JUDGED), rng.choice(THINGS), rng.choice(rng.choice((GOOD, BAD))))
        if not any(made in text for text in held):
            found[made] = None
    return list(found)


def task(run: Any, name: str) -> Any:
    """A downstream task, of whose rows each draw takes others."""
    if name != "pairs":
        return run.data(name)
    import random
    from dataclasses import replace

    import numpy as np

    from luthier.data.split import Split
    from luthier.models.testbeds.words import KINDS

    rng = random.Random("pairs")
    rows: dict[str, int] = {}
    while len(rows) < 700:
        one, other = rng.sample(list(KINDS), 2)
        same = len(rows) % 2
        first, second = (
            rng.sample(KINDS[one], 2) if same else (rng.choice(KINDS[one]), rng.choice(KINDS[other]))
        )
        rows.setdefault(f"{first} / {second}", same)
    texts, targets = list(rows), np.array(list(rows.values()), dtype=np.int64)
    like = run.data("verdicts")
    parts = [Split(texts[a:b], targets[a:b]) for a, b in ((0, 300), (300, 400), (400, 700))]
    posed = like.task.model_copy(update={"labels": ("no", "yes")})
    return replace(like, train=parts[0], validation=parts[1], test=parts[2], task=posed, name="pairs")


@CHECK.measures("one", "norm", "step", cheap=True)
def what_the_regulator_does(run: Any) -> None:
    import torch

    from luthier.signals.regulator import gate, regulated, specs

    for width in (32, 160, 768):
        rng = torch.Generator().manual_seed(width)
        t = {k: s.start(s.shape, rng) for k, s in specs(width, 64, 2, 24).items() if s.start is not None}
        g, prompt = (torch.randn(20, width, generator=rng) for _ in range(2))
        if gate(g[0], t) != 1:
            raise RuntimeError("a regulator that learned nothing does not leave gradients alone")
        t["psi_learned"].fill_(1.0)
        turned = regulated(g, 0.0, t)
        if torch.allclose(turned, g, atol=0.1) or not 0 < gate(g[0], t) < 1:
            raise RuntimeError("psi turns nothing, so that equality would show nothing")
        arm = f"width {width}"
        run.record("one", (regulated(g, 1.0, t) - g).abs().max(), arm=arm)
        run.record("norm", (turned.norm(dim=-1) - g.norm(dim=-1)).abs().max(), arm=arm)
        moved = prompt - 0.1 * regulated(g, 1.0, t)
        run.record("step", (moved - torch.add(prompt, g, alpha=-0.1)).abs().max(), arm=arm)


@CHECK.measures("reached", "both", "alone", cheap=True)
def what_meta_training_moves(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.meta.initialise import Learner, Meta
    from luthier.meta.pseudo_tasks import FORMATS, PseudoTasks

    model, texts = run.model("t5"), unlabelled(set())[:400]
    near = torch.randn(len(texts), 8, generator=torch.Generator().manual_seed(0)).numpy()
    tasks = PseudoTasks(texts, near, clusters=6, rows=8, ways=3)
    adapted: Any = Adapted(model.base)
    made: Any = adapted.attach("main", Adaptation.new(lt.methods.SUPMER(length=LENGTH), model.base))
    learner = Learner(model, adapted, made, tasks, Meta(rows=8, ways=3))
    reached: set[str] = set()
    for format in FORMATS:
        drawn = [tasks.draw(learner.rng, format) for _ in range(3)]
        learner.learn(*drawn[:2])
        reached |= {
            n for n, p in learner.mixed.named_parameters() if p.grad is not None and p.grad.abs().max() > 0
        }
        with torch.no_grad():
            query, *others = (learner.batch(episode.query) for episode in drawn)
            losses = [learner.mixed(query, other, 1.0) for other in others]
            half = [learner.mixed(query, other, 0.5) for other in others]
        if half[0] == half[1]:
            raise RuntimeError("the second task changes nothing, so that equality would show nothing")
        run.record("alone", losses[0] - losses[1], arm=format)
    ours = {learner.name} | {
        n for n, _ in learner.mixed.named_parameters() if ".common.psi_" in n and "learned" not in n
    }
    run.record("reached", len(reached - ours))
    run.record("both", len(reached & ours) / len(ours))


@CHECK.measures("random", "vocabulary", "start")
def from_few_rows(run: Any) -> None:
    import luthier as lt
    from luthier.starts.normal import Normal

    model = run.model("t5")
    downstream = {name: task(run, name) for name in TASKS}
    start = learned(run, model, downstream)
    prompt = lt.methods.PromptTuning(length=LENGTH)
    arms: dict[str, tuple[Any, Any]] = {
        "supmer": (lt.methods.SUPMER(length=LENGTH), start),
        "start_alone": (prompt, start),
        "random": (lt.methods.PromptTuning(length=LENGTH, start=Normal()), None),
        "vocabulary": (prompt, None),
    }
    for t, (name, data) in enumerate(downstream.items()):
        for arm, (method, after) in arms.items():
            own = {**SETTINGS, "after": after}
            first = drawn(data, 0)
            rate = run.best_rate("random", f"{name}, {arm}", model, first, method, **own)
            for draw in DRAWS:

                def score(
                    draw: int = draw, method: Any = method, own: Any = own, rate: float = rate
                ) -> float:
                    few = drawn(data, draw)  # noqa: B023
                    fitted = run.fit(model, few, method, seed=draw, rate=rate, **own)
                    return float(fitted.score(data.test.select(list(range(200))))["accuracy"])  # noqa: B023

                found = run.once(["test", name, arm, draw], score)
                seed = len(DRAWS) * t + draw
                for claim in ("random", "vocabulary"):
                    if arm in ("supmer", claim):
                        run.record(claim, found, arm=arm, seed=seed, task=name, rate=rate)
                if after is not None:
                    run.record("start", found, arm=arm, seed=seed, task=name, rate=rate)
                run.say(f"S306: {name}, {arm}, draw {draw}: {found:.3f}")


def drawn(data: Any, draw: int) -> Any:
    """The rows of one draw, with 100 validation rows."""
    from dataclasses import replace

    rows = data.train.select(list(range(draw * SHOTS, (draw + 1) * SHOTS)))
    return replace(data.limit(validation=100), train=rows)


def learned(run: Any, model: Any, downstream: Any) -> Any:
    """The meta-learned start, kept in the check's work folder."""
    import luthier as lt
    from luthier.host.files import load, save
    from luthier.meta.initialise import Meta, initialise
    from luthier.papers.results import fingerprint

    place = run.work / f"S306-{fingerprint(run.check)[:12]}-start" if run.work is not None else None
    if place is not None and place.is_dir():
        return load(place, model.base, model.fingerprint)
    held = {text for data in downstream.values() for text in data.test.inputs}
    meta = Meta(steps=OUTER, tasks=TASKS_A_STEP, rows=ROWS, clusters=CLUSTERS)

    def tell(step: int, loss: float) -> None:
        if step % 50 == 0:
            run.say(f"S306: outer step {step} of {OUTER}, loss {loss:.3f}")

    made = initialise(
        model, unlabelled(held), method=lt.methods.SUPMER(length=LENGTH), meta=meta, tell=partial(tell)
    )
    if place is not None:
        save(made, place, model.fingerprint)
    return made
