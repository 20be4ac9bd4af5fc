"""S247, CPT (Blau et al. 2024): demonstrations that train within a ball, what they are before, and what that is worth."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, AtMost, Beats, Equals

SHOTS, TASKS, TUNING = 6, 10, 3
SYMBOLS, WORDS, OWN, LONG = 32, 16, 4, 3
WIDTH, LAYERS = 64, 2
PRETRAIN: dict[str, Any] = {"steps": 2500, "copying": 750, "batch": 32, "rate": 2e-3}
COPIED, PERIODS = 48, (4, 24)
ROWS = {"validation": 64, "test": 200}
SETTINGS: dict[str, Any] = {"steps": 60, "batch_size": SHOTS, "signal": "choices"}
RATES = (1 / 3, 1.0, 3.0)

CHECK = Check(
    "S247",
    "Demonstrations as embeddings that train within a small ball start as in-context learning, stay near it, keep their answers, and "
    "end at least as good, and better than a prompt of as many tokens that starts at random.",
    claims=(
        Beats(
            "icl",
            "accuracy on queries of new tasks is at least that of the same demonstrations untrained, mean of 10 tasks",
            arm="cpt",
            over="icl",
            ties=True,
            seeds=TASKS,
        ),
        Beats(
            "prompt",
            "and above that of prompt tuning of the same length from a random start, mean of 10 tasks",
            arm="cpt",
            over="prompt_tuning",
            seeds=TASKS,
        ),
        AtLeast(
            "competent", "accuracy of in-context learning with 6 shots above chance, mean of 10 tasks", 0.15
        ),
        AtMost(
            "plain",
            "with radius 0 after 3 steps, or with none, logits are those of the demonstrations as tokens (largest difference, float64)",
            1e-6,
        ),
        AtMost("ball", "what a token's shift exceeds its radius by, after 1, 2 and 5 steps (largest)", 1e-6),
        Equals("answers", "numbers of the answers' embeddings that training changed", 0),
        AtMost(
            "decay", "the context's loss less sum_j gamma^j of the loss of the answer j back (largest)", 1e-5
        ),
    ),
    covers=(
        "luthier.methods.prompts.cpt",
        "luthier.methods.prompts.prompt_tuning",
        "luthier.starts.demonstrations",
        "luthier.starts.uniform",
        "luthier.models.testbeds.small",
        "testbed:llama",
        "testbed:gpt2",
    ),
    data="the Llama and GPT-2 testbeds; a two-layer decoder that is pretrained here, first on words that repeat with a period, then on "
    "episodes: two classes with four symbols of their own each, named by random words",
    against="the same demonstrations untrained; prompt tuning of the same length from random vectors; each at its own best of three "
    "learning rates, chosen on three further tasks",
    minutes=7,
)


def colours(rows: int = 8) -> Any:
    """A few words in two classes: what is exact does not depend on them."""
    import numpy as np

    from luthier.data.split import Data, Split
    from luthier.data.task import Task

    words = ["red apples", "blue skies", "a red coat", "the blue sea"]
    split = Split([words[i % 4] for i in range(rows)], np.array([i % 2 for i in range(rows)]))
    kind = Task(kind="classification", modality="text", input="text", label="label", labels=("red", "blue"), metric="accuracy")  # fmt: skip
    return Data(split, split, split, kind, "colours")


@CHECK.measures("plain", "ball", "answers", "decay", cheap=True)
def what_a_context_is(run: Any) -> None:
    import torch
    from torch.nn import functional as F

    import luthier as lt
    from luthier.host import Adapted
    from luthier.methods.prompts.cpt import context_loss
    from luthier.starts.demonstrations import Demonstrations

    start, settings = Demonstrations(shots=3), {"batch_size": 4, "signal": "choices"}
    for name in ("llama", "gpt2"):
        model = run.model(name, dtype="float64")
        base, vocabulary = model.base, model.base.get_input_embeddings().weight
        query = torch.randint(20, len(vocabulary), (3, 7), generator=torch.Generator().manual_seed(0))
        for steps in (1, 2, 5):
            method = lt.methods.CPT(start=start)
            made = run.fit(model, colours(), method, steps=steps, **settings).adaptation.at()[0]
            shift, kinds = made.values["S"], made.layout["kinds"]
            over = shift.norm(dim=1) - method.radii(kinds, shift.shape[1])
            run.record("ball", over.max(), arm=f"{name}, {steps} steps")
            tokens, ids = method.tokens(made.t(None), None), torch.tensor(made.layout["ids"])
            fixed = torch.tensor([k > 0 for k in kinds])
            run.record("answers", (tokens[fixed] != vocabulary[ids[fixed]].float()).sum(), arm=name)
            if not (tokens[~fixed] != vocabulary[ids[~fixed]].float()).any():
                raise RuntimeError("no token moves, so that fixed answers would show nothing")
        still = lt.methods.CPT(start=start, input_radius=0.0, format_radius=0.0)
        held = run.fit(model, colours(), still, steps=3, **settings).adaptation
        ids = torch.tensor(held.at()[0].layout["ids"])
        adapted: Any = Adapted(base)
        with torch.no_grad():
            whole = base(torch.cat([ids.expand(3, -1), query], 1)).logits
            alone = adapted({"input_ids": query}).logits
            with adapted.attached(without_head(held, base)):
                out = adapted({"input_ids": query})
        if torch.allclose(out.logits, alone, atol=1e-3):
            raise RuntimeError("the demonstrations change nothing, so that equality would show nothing")
        run.record("plain", (out.logits - whole[:, len(ids) :]).abs().max(), arm=name)
        logits = base.get_output_embeddings()(out.notes["prompt"][0][0])
        run.record("plain", (logits - whole[0, : len(ids)]).abs().max(), arm=f"{name}, context")
        kinds, gamma = held.at()[0].layout["kinds"], 0.7
        want: Any = 0.0
        for back in (1, 2, 3):
            where = [i for i, kind in enumerate(kinds) if kind == back]
            said = whole[0, [i - 1 for i in where]].float()
            want = want + gamma**back * F.cross_entropy(said, ids[where])
        run.record("decay", (context_loss(logits, ids.tolist(), kinds, gamma) - want).abs(), arm=name)


def without_head(made: Any, base: Any) -> Any:
    """The context alone, which gives a language model's logits."""
    from luthier.host import Adaptation

    bare = Adaptation.new(made.method, base, layouts=made.layouts())
    for new, old in zip(bare.at(), made.at(), strict=True):
        for key, value in new.values.items():
            value.data.copy_(old.values[key])
    return bare


class Episodes:
    """Tasks: two classes, each with symbols of its own and a word for its name."""

    def __init__(self, seed: int):
        import random

        self.rng = random.Random(seed)

    def task(self) -> tuple[list[list[str]], list[str]]:
        """([symbols of each class], [name of each])."""
        drawn = self.rng.sample(range(SYMBOLS), 2 * OWN)
        own = [[f"s{i}" for i in drawn[:OWN]], [f"s{i}" for i in drawn[OWN:]]]
        return own, [f"w{i}" for i in self.rng.sample(range(WORDS), 2)]

    def rows(self, own: list[list[str]], n: int, even: bool = True) -> list[tuple[str, int]]:
        """In an order of their own; even: both classes equally often, so that the last could be told by counting."""
        classes = [i % 2 if even else self.rng.randrange(2) for i in range(n)]
        made = [(" ".join(self.rng.choices(own[y], k=LONG)), y) for y in classes]
        self.rng.shuffle(made)
        return made

    def data(self) -> Any:
        """A new task: as many training rows as there are shots."""
        import numpy as np

        from luthier.data.split import Data, Split
        from luthier.data.task import Task

        own, names = self.task()
        seen: set[str] = set()
        parts = {}
        for part, n in {"train": SHOTS, **ROWS}.items():
            rows = [row for row in self.rows(own, n) if part == "train" or row[0] not in seen]
            seen |= {x for x, _ in rows} if part == "train" else set()
            parts[part] = Split([x for x, _ in rows], np.array([y for _, y in rows]))
        kind = Task(kind="classification", modality="text", input="symbols", label="word", labels=tuple(names), metric="accuracy")  # fmt: skip
        return Data(parts["train"], parts["validation"], parts["test"], kind, "an episode")


def pretrained(seed: int) -> Any:
    """A decoder that has read episodes: rows and their words, one after the other; every word is trained on.

    First it reads words that repeat, with another period in every row. From episodes alone it learns in 6,000 steps only which
    two words occur; from a period it learns to look up what came after the same before, which is where reading examples begins.
    """
    from collections.abc import Iterator

    import torch

    from luthier.models.testbeds.small import SPECIAL, decoder, train

    words = [*(f"s{i}" for i in range(SYMBOLS)), *(f"w{i}" for i in range(WORDS))]
    model = decoder(words, seed, width=WIDTH, layers=LAYERS, positions=128)
    pre, episodes, n = model.preprocess, Episodes(seed), SHOTS + 2

    rng = torch.Generator().manual_seed(seed)
    vocabulary, at = model.base.config.vocab_size, torch.arange(COPIED)[None]

    def repeating() -> dict[str, Any]:
        once = torch.randint(len(SPECIAL), vocabulary, (PRETRAIN["batch"], PERIODS[1]), generator=rng)
        period = torch.randint(*PERIODS, (PRETRAIN["batch"], 1), generator=rng)
        ids = once.gather(1, at % period)
        return {"input_ids": ids, "labels": ids.masked_fill(at < period, -100)}

    def batches() -> Iterator[dict[str, Any]]:
        for _ in range(PRETRAIN["copying"]):
            yield repeating()
        while True:
            inputs, targets = [], []
            for _ in range(PRETRAIN["batch"]):
                own, names = episodes.task()
                for x, y in episodes.rows(own, n, even=False):
                    inputs.append(x)
                    targets.append(names[y])
            encoded = pre.encode_text2text(inputs, targets)
            yield pre.collate(
                [
                    {k: [i for row in encoded[e : e + n] for i in row[k]] for k in ("input_ids", "labels")}
                    for e in range(0, len(encoded), n)
                ]
            )

    return train(model, batches(), steps=PRETRAIN["steps"], rate=PRETRAIN["rate"])


@CHECK.measures("icl", "prompt", "competent")
def new_tasks(run: Any) -> None:
    import luthier as lt
    from luthier.starts.demonstrations import Demonstrations
    from luthier.starts.uniform import Uniform

    model, episodes = pretrained(0), Episodes(1)
    tuning = [episodes.data() for _ in range(TUNING)]
    tasks = [episodes.data() for _ in range(TASKS)]
    start = Demonstrations(shots=SHOTS)
    length = SHOTS * (LONG + 3)  # symbols, separator, word, end
    arms = {
        "icl": lt.methods.CPT(start=start, input_radius=0.0, format_radius=0.0),
        "cpt": lt.methods.CPT(start=start),
        "prompt_tuning": lt.methods.PromptTuning(length=length, start=Uniform()),
    }

    def scored(method: Any, data: Any, part: str, factor: float) -> float:
        fitted = run.fit(model, data, method, rate=factor * float(method.rate), **SETTINGS)
        return float(fitted.score(getattr(data, part))["accuracy"])

    found: dict[str, list[float]] = {}
    for name, method in arms.items():
        tried = {}
        for factor in RATES if name != "icl" else (1.0,):
            values = [
                run.once(
                    ["rate", name, factor, i], lambda d=d, f=factor, m=method: scored(m, d, "validation", f)
                )
                for i, d in enumerate(tuning)
            ]
            tried[factor] = sum(values) / len(values)
            run.say(f"{run.check.id}: {name} at {factor:.2g} times its rate: validation {tried[factor]:.3f}")
        best = max(tried, key=lambda f: tried[f])
        found[name] = [
            run.once(["test", name, i], lambda d=d, m=method, f=best: scored(m, d, "test", f))
            for i, d in enumerate(tasks)
        ]
        for claim in ("icl", "prompt"):
            if name in ("cpt", "icl" if claim == "icl" else "prompt_tuning"):
                for i, value in enumerate(found[name]):
                    run.record(claim, value, arm=name, seed=i, rate=best * float(method.rate))
    run.record("competent", sum(found["icl"]) / TASKS - 0.5)
