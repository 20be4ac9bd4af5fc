"""S372, Q-Tuning (Guo et al. 2024): a queue that stays as long as it is, earlier tasks that answer as they did, and what it is worth."""

from __future__ import annotations

from functools import partial
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Equals

TASKS, ROWS, STEPS, SEEDS = 20, {"train": 16, "validation": 32, "test": 60}, 20, range(3)
QUEUE: dict[str, Any] = {"length": 4, "shared_length": 4, "queue": 5}
LONGEST = QUEUE["shared_length"] + QUEUE["queue"] * QUEUE["length"]
SETTINGS: dict[str, Any] = {"signal": "choices", "batch_size": 8, "progress": False}
FACTORS, TUNED_ON = (1 / 3, 1.0, 3.0), 4
"""Multiples of a method's own rate that are tried, and the stream's first tasks that they are tried on."""
OPINIONS = (
    ("praise", "blame"), ("good", "bad"), ("yes", "no"), ("gold", "lead"), ("sunshine", "storm"),
    ("rose", "cactus"), ("cake", "onion"), ("great", "poor"), ("white", "black"), ("Sunday", "Monday"),
)  # fmt: skip

CHECK = Check(
    "S372",
    "On a stream of 20 tasks a queue of 5 prompts keeps the length and the cost of the sixth task for ever; earlier tasks answer bit for bit "
    "as they did; and tasks are learned better than by separate prompts and than by a queue that drops its oldest.",
    claims=(
        Beats(
            "separate",
            "mean accuracy over 20 tasks, each by its own state: above separate prompts as long as the full queue, 3 seeds",
            arm="q_tuning",
            over="separate",
        ),
        Beats(
            "fifo",
            "mean accuracy over 20 tasks, each by its own state: above the same queue that drops its oldest rows, 3 seeds",
            arm="q_tuning",
            over="fifo",
        ),
        Equals(
            "length", "tokens by which the prompt of any task after the fifth differs from the fifth's", 0
        ),
        AtMost("time", "a step's time on the 20th task over that on the sixth (median of 15)", 1.1),
        AtMost(
            "reconstructed",
            "rows - 1 components and the mean: largest difference from the rows of a trained queue",
            1e-5,
        ),
        Equals("ones", "logits that differ from those of the plain concatenation under weights of ones", 0),
        Equals("kept", "probabilities of a first task that four further tasks changed", 0),
    ),
    covers=(
        "luthier.methods.prompts.q_tuning",
        "luthier.sources.principal",
        "luthier.signals.info_nce",
        "luthier.host.following",
        "luthier.streams.stream",
        "testbed:t5",
    ),
    data="the T5 testbed; a stream of 20 two-way tasks of 16 rows in four blocks: which of two kinds a thing is of, and whether a sentence "
    "praises or blames, under ten pairs of names",
    against="a new prompt for every task, as long as the full queue with the shared prefix; the same queue that drops its oldest rows",
    minutes=10,
    notes="Each arm at its own best of three rates, by the validation rows of the first four tasks of seed 0. The sixth task is the first "
    "whose queue was compressed.",
)


def tasks(seed: int, number: int = TASKS) -> dict[str, Any]:
    """{name: data}: five tasks about kinds, five about opinions, and so on; no sentence is in two parts."""
    import random

    rng = random.Random(f"stream {seed}")
    found: dict[str, Any] = {}
    opinions = rng.sample(OPINIONS, len(OPINIONS))
    pairs: list[tuple[str, ...]] = []
    while len(found) < number:
        if len(found) // 5 % 2:
            labels = opinions[sum("opinion" in n for n in found) % len(opinions)]
            found[f"{len(found) + 1} opinion {labels[0]}"] = task(rng, labels, opinion)
            continue
        from luthier.models.testbeds.words import KINDS

        names = tuple(rng.sample(list(KINDS), 2))
        if names not in pairs:
            pairs.append(names)
            found[f"{len(found) + 1} kind {names[0]} {names[1]}"] = task(rng, names, partial(kind, names))
    return found


def kind(names: tuple[str, ...], rng: Any, label: int) -> str:
    from luthier.models.testbeds.tasks import NEAR, _sentence
    from luthier.models.testbeds.words import KINDS

    return _sentence(rng, rng.choice(NEAR), rng.choice(KINDS[names[label]]))


def opinion(rng: Any, label: int) -> str:
    from luthier.models.testbeds.tasks import JUDGED, _sentence
    from luthier.models.testbeds.words import BAD, GOOD, THINGS

    return _sentence(rng, rng.choice(JUDGED), rng.choice(THINGS), rng.choice((GOOD, BAD)[label]))


def task(rng: Any, names: tuple[str, ...], make: Any) -> Any:
    """Balanced rows of one task."""
    import numpy as np

    from luthier.data.split import Data, Split
    from luthier.data.task import Task

    rows: dict[str, int] = {}
    while len(rows) < sum(ROWS.values()):
        label = len(rows) % 2
        rows.setdefault(make(rng, label), label)
    texts, targets, parts, begin = list(rows), np.array(list(rows.values()), dtype=np.int64), {}, 0
    for part, n in ROWS.items():
        parts[part] = Split(texts[begin : begin + n], targets[begin : begin + n])
        begin += n
    posed = Task(kind="classification", modality="text", labels=names, input="text", label="label")
    return Data(parts["train"], parts["validation"], parts["test"], posed, " or ".join(names))


def chain(base: Any, number: int, head: Any = None) -> list[Any]:
    """Adaptations of one untrained stream, so that rows are different: each after the one before."""
    import luthier as lt
    from luthier.host import Adaptation
    from luthier.host.following import following

    method = lt.methods.QTuning(**QUEUE)
    made = [Adaptation.new(method, base, head=head)]
    for i in range(1, number):
        made.append(following(made[-1], method, base, head=head, seed=i))
    return made


@CHECK.measures("length", "ones", "reconstructed", cheap=True)
def what_the_queue_is(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.sources.principal import decomposed

    model = run.model("t5")
    made = chain(model.base, TASKS)
    values = [one.at()[0].values for one in made]
    lengths = [sum(len(v[k]) for k in ("S", "Q", "P") if k in v) for v in values]
    if lengths[:6] != [8, 12, 16, 20, 24, 24]:
        raise RuntimeError(f"the queue does not grow by one prompt a task: {lengths}")
    for number, length in enumerate(lengths[5:], 6):
        run.record("length", length - lengths[4], arm=f"task {number}")
    for v in values[5:7]:
        rows = v["Q"].detach()
        mean, weights, components = decomposed(rows, len(rows) - 1)
        run.record("reconstructed", (mean + weights @ components - rows).abs().max())
    adapted: Any = Adapted(model.base)
    plain = Adaptation.new(lt.methods.PromptTuning(length=LONGEST), model.base)
    plain.at()[0].values["P"].data.copy_(torch.cat([values[-1][k] for k in ("S", "Q", "P")]))
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(20, model.base.config.vocab_size, (3, 9), generator=rng)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids[:, :4]}
    with torch.no_grad():
        logits = []
        for one in (plain, made[-1]):
            with adapted.attached(one):
                logits.append(adapted(batch).logits)
        values[-1]["u"].mul_(1.5)
        with adapted.attached(made[-1]):
            if torch.allclose(adapted(batch).logits, logits[1], atol=1e-3):
                raise RuntimeError("the weights change nothing, so that equality would show nothing")
    run.record("ones", int((logits[0] != logits[1]).sum()))


@CHECK.measures("kept", "time", cheap=True)
def what_is_kept_and_what_it_costs(run: Any) -> None:
    import time
    from statistics import median

    import luthier as lt
    from luthier.host import Adapted
    from luthier.methods.choices import Choices
    from luthier.signals.objectives import CrossEntropy
    from luthier.streams.stream import stream
    from luthier.train.batches import Batches, encode, number_examples
    from luthier.train.run import Recipe, Run

    model, given = run.model("t5"), tasks(0, 5)
    method = lt.methods.QTuning(**QUEUE)
    made = stream(model, given, method, steps=2, **SETTINGS)
    first = next(iter(given))
    alone = stream(model, {first: given[first]}, method, steps=2, **SETTINGS)
    texts = given[first].test.inputs
    run.record("kept", int((made[first].predict_proba(texts) != alone[first].predict_proba(texts)).sum()))
    data, head = given[first], Choices(classes=2)
    whole = chain(model.base, TASKS, head)
    encoded = encode(model.preprocess, data.train, data.task, head=head)
    number_examples([encoded])
    seconds: dict[int, list[float]] = {6: [], TASKS: []}
    for _ in range(15):  # in turns, so that what else the machine does falls on both
        for number, spent in seconds.items():
            adapted: Any = Adapted(model.base)
            adapted.attach("main", whole[number - 1])
            batches = Batches({"train": encoded}, batch_size=8, seed=0, device="cpu")
            one = Run(adapted, method.phases(), batches, CrossEntropy(), Recipe(2))
            one.enter()
            one.gradient_step()
            began = time.process_time()
            one.gradient_step()
            spent.append(time.process_time() - began)
            adapted.detach()
    run.record("time", median(seconds[TASKS]) / median(seconds[6]))


@CHECK.measures("separate", "fifo")
def twenty_tasks(run: Any) -> None:
    import luthier as lt
    from luthier.streams.stream import stream

    model = run.model("t5")
    arms: dict[str, tuple[Any, bool]] = {
        "q_tuning": (lt.methods.QTuning(**QUEUE), False),
        "fifo": (lt.methods.QTuning(**QUEUE, evict="fifo"), False),
        "separate": (lt.methods.PromptTuning(length=LONGEST), True),
    }

    def go(method: Any, afresh: bool, rate: float, seed: int, part: str, number: int) -> list[float]:
        given = tasks(seed, number)
        blind = {name: data.__class__(data.train, None, None, data.task, data.name) for name, data in given.items()}  # fmt: skip
        made = stream(
            model, blind, method, afresh=afresh, seed=100 * seed, steps=STEPS, rate=rate, **SETTINGS
        )
        return [float(made[n].score(getattr(d, part))["accuracy"]) for n, d in given.items()]

    for name, (method, afresh) in arms.items():
        tried = {}
        for factor in FACTORS:
            rate = float(method.rate) * factor
            key = [name, "validation", rate]
            scores = run.once(key, partial(go, method, afresh, rate, 0, "validation", TUNED_ON))
            tried[rate] = sum(scores) / len(scores)
            run.say(f"S372: {name} at rate {rate:.2g}: validation {tried[rate]:.3f}")
            run.trials.append(
                {"claim": "separate", "arm": name, "rate": rate, "seed": 0, "validation": tried[rate]}
            )
        rate = max(tried, key=lambda r: tried[r])
        for seed in SEEDS:
            scores = run.once(
                [name, "test", rate, seed], partial(go, method, afresh, rate, seed, "test", TASKS)
            )
            mean = sum(scores) / len(scores)
            run.say(f"S372: {name}, seed {seed}: mean accuracy {mean:.3f}")
            for claim in ("separate", "fifo"):
                if name in ("q_tuning", claim):
                    run.record(claim, mean, arm=name, seed=seed, rate=rate)
