"""S056, SPT semi-parametric (Bari et al. 2022): prompt tokens fetched from a memory: which, for whom, what trains, what they are worth."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Equals, Reported

LENGTH, FETCHED, ENTRIES = 8, 4, 64
SETTINGS: dict[str, Any] = {"steps": 600, "batch_size": 24, "max_new_tokens": 12}
WORDINGS = {
    "first": ("Which word is the first?", "Write the first word.", "The first of these words:"),
    "last": ("Which word is the last?", "Write the last word.", "The last of these words:"),
    "second": ("Which word is the second?", "Write the second word.", "The second of these words:"),
    "ends": ("Which words are at both ends?", "Write the words at both ends.", "Both ends of these words:"),
    "backwards": ("What are the words backwards?", "Write the words backwards.", "Backwards, these words:"),
    "twice": (
        "What is the first word twice?",
        "Write the first word twice.",
        "Twice the first of these words:",
    ),
}
"""Six tasks in three wordings each; the last of each is held out."""

CHECK = Check(
    "S056",
    "Prompt tokens that a row fetches from a memory are the nearest ones, its own in any batch, and all that trains of the memory; "
    "on a wording that was not trained on they are worth more than one shared prompt and than rows drawn at random.",
    claims=(
        Beats(
            "shared",
            "exact match on held-out wordings above one soft prompt of at least as many numbers, 3 seeds",
            arm="retrieved",
            over="shared",
        ),
        Beats(
            "at_random",
            "exact match on held-out wordings above fetching rows at random, 3 seeds",
            arm="retrieved",
            over="random",
        ),
        Equals(
            "nearest", "fetched entries that a search of 10,000 rows, many of them equal, does not give", 0
        ),
        AtMost("none", "with k = 0 it is prompt tuning (largest difference)", 0.0),
        AtMost("mixed", "a batch that mixes tasks equals batches of one (largest difference, float64)", 1e-5),
        Equals("gradient", "entries with a gradient that were not fetched, and fetched ones without", 0),
        Equals("query", "query maps without a gradient where fetched rows are weighted", 0),
        Reported("accuracy", "exact match of the three on held-out wordings"),
    ),
    covers=(
        "luthier.methods.prompts.retrieved_prompt",
        "luthier.methods.prompts.prompt_tuning",
        "luthier.sources.retrieved",
        "luthier.sources.instruction",
        "testbed:t5",
    ),
    data="the T5 testbed and six tasks on lists of words, each asked for in three wordings",
    against="one prompt for all rows with at least as many numbers; the same memory with entries drawn at random for every row; each at "
    "its own best of three learning rates",
    minutes=20,
)


@CHECK.measures("nearest", "none", "mixed", "gradient", "query", cheap=True)
def what_is_fetched(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.sources.retrieved import Retrieved, largest

    rng = torch.Generator().manual_seed(0)
    memory, queries = torch.randn(10_000, 8, generator=rng).round(), torch.randn(8, 8, generator=rng).round()
    scores = queries @ memory.mT
    want = [[i for _, i in sorted((-s, i) for i, s in enumerate(row))[:20]] for row in scores.tolist()]
    run.record("nearest", int((largest(scores, 20) != torch.tensor(want)).sum()))

    model = run.model("t5", dtype="float64")
    ids = torch.randint(20, model.base.config.vocab_size, (6, 13), generator=rng)
    batch = {
        "input_ids": ids[:, :9],
        "attention_mask": torch.ones_like(ids[:, :9]),
        "decoder_input_ids": ids[:, 9:],
    }
    adapted: Any = Adapted(model.base)

    def logits(method: Any) -> Any:
        with torch.no_grad(), adapted.attached(Adaptation.new(method, model.base, seed=1).to(torch.float64)):
            return adapted(batch).logits

    plain = logits(lt.methods.PromptTuning(length=LENGTH))
    run.record("none", (logits(retrieved(Retrieved, k=0)) - plain).abs().max())
    for weighted in (True, False):
        arm = "weighted" if weighted else "rows"
        made = Adaptation.new(retrieved(Retrieved, weighted=weighted), model.base).to(torch.float64)
        with adapted.attached(made), fetches() as fetched:
            together = adapted(batch).logits
            together.square().mean().backward()
            with torch.no_grad():
                parts = [adapted({k: v[i : i + 2] for k, v in batch.items()}).logits for i in (0, 2, 4)]
        run.record("mixed", (torch.cat(parts) - together).abs().max(), arm=arm)
        values = made.at()[0].values
        with_gradient = set((values["M"].grad.abs().amax(1) > 0).nonzero()[:, 0].tolist())
        own = set(fetched[0].flatten().tolist())
        run.record("gradient", len(with_gradient ^ own), arm=arm, fetched=len(own))
        if weighted:
            run.record("query", int(not values["Wq"].grad.abs().max() > 0))


@CHECK.measures("shared", "at_random", "accuracy")
def held_out_wordings(run: Any) -> None:
    import luthier as lt
    from luthier.sources.retrieved import Retrieved

    model, data = run.model("t5"), tasks()
    width = model.base.get_input_embeddings().embedding_dim
    numbers = (ENTRIES + LENGTH - FETCHED) * width + width * width
    arms = {
        "retrieved": retrieved(Retrieved),
        "shared": lt.methods.PromptTuning(length=-(-numbers // width)),
        "random": retrieved(drawn()),
    }
    found = run.compare("accuracy", model, data, arms, **SETTINGS)
    for claim, control in (("shared", "shared"), ("at_random", "random")):
        for name in ("retrieved", control):
            for seed, score in found[name].items():
                run.record(claim, score, arm=name, seed=seed)


@contextmanager
def fetches() -> Iterator[list[Any]]:
    """Which entries each forward inside the block fetched."""
    from luthier.sources.retrieved import Retrieved

    kept: list[Any] = []
    usual = Retrieved.fetch

    def noted(self: Any, scores: Any) -> Any:
        kept.append(usual(self, scores))
        return kept[-1]

    Retrieved.fetch = noted  # type: ignore[method-assign]
    try:
        yield kept
    finally:
        Retrieved.fetch = usual  # type: ignore[method-assign]


def retrieved(kind: Any, **options: Any) -> Any:
    """The method with this kind of memory."""
    import luthier as lt

    source = kind(**{"entries": ENTRIES, "k": FETCHED, **options})
    return lt.methods.RetrievedPrompt(length=LENGTH, source=source)


def drawn() -> Any:
    """A memory whose entries are drawn anew for every row, whatever it says."""
    import torch

    from luthier.host.part import register
    from luthier.sources.retrieved import Retrieved

    class Drawn(Retrieved):
        def fetch(self, scores: Any) -> Any:
            return torch.rand(scores.shape, device=scores.device).argsort(-1)[..., : self.k]

    return register("drawn_entries")(Drawn)


def answer(task: str, words: list[str]) -> str:
    """What a task asks of the words."""
    return {
        "first": words[0],
        "last": words[-1],
        "second": words[1],
        "ends": f"{words[0]} {words[-1]}",
        "backwards": " ".join(reversed(words)),
        "twice": f"{words[0]} {words[0]}",
    }[task]


def tasks() -> Any:
    """Text to text; training and validation use two wordings of each task, test the third."""
    from luthier.data.split import Data, Split
    from luthier.data.task import Task
    from luthier.models.testbeds.words import KINDS

    rng = random.Random(0)
    things = sorted(x for kind in KINDS.values() for x in kind)
    parts: dict[str, Any] = {}
    for name, rows, which in (("train", 1800, (0, 1)), ("validation", 240, (0, 1)), ("test", 360, (2,))):
        inputs, targets = [], []
        for i in range(rows):
            asked = list(WORDINGS)[i % len(WORDINGS)]
            words = rng.sample(things, 3)
            inputs.append(f"{WORDINGS[asked][rng.choice(which)]} {' '.join(words)}")
            targets.append(answer(asked, words))
        parts[name] = Split(inputs, targets)
    task = Task(kind="text2text", modality="text", input="prompt", label="answer", metric="exact_match")
    return Data(parts["train"], parts["validation"], parts["test"], task, "six tasks on words")
