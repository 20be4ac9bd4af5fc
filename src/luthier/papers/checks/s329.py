"""S329, PERSOMA (Hebert et al. 2024): fifty events of a user in eight soft tokens, beside the same events as text."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.checks.s282 import inputs
from luthier.papers.claims import AtMost, Beats

EVENTS, LENGTH, RANK = 50, 8, 4
GENRES = {
    "horror": ("ghost", "vampire", "zombie", "curse", "witch", "grave", "demon", "monster"),
    "romance": ("wedding", "kiss", "bride", "love", "letter", "heart", "flower", "dance"),
    "space": ("rocket", "planet", "alien", "star", "robot", "orbit", "moon", "galaxy"),
    "western": ("cowboy", "horse", "sheriff", "desert", "saloon", "ranch", "gold", "canyon"),
}
ROWS = {"train": 800, "validation": 100, "test": 300}
SETTINGS: dict[str, Any] = {"steps": 160, "batch_size": 8}
SEEDS = (0, 1, 2)

CHECK = Check(
    "S329",
    "A user's history of texts becomes eight soft tokens which are nearly worth the whole history as text, and more than the mean of "
    "its items; whose history it is decides.",
    claims=(
        Beats(
            "text",
            "eight tokens of the history are within 3 points of its text in the prompt, mean of 3 seeds",
            arm="persoma",
            over="text",
            by=-0.03,
            ties=True,
        ),
        Beats(
            "mean",
            "and above one token of the mean of its items, mean of 3 seeds",
            arm="persoma",
            over="mean",
        ),
        AtMost("share", "soft tokens as a share of the tokens of the history as text", 0.1),
        AtMost(
            "another", "accuracy with another user's history, above the most frequent class (largest)", 0.05
        ),
        AtMost("padding", "padding items: largest difference of what the model says (float64)", 1e-5),
        AtMost(
            "order",
            "other order, perceiver without positions: largest difference of what the model says (float64)",
            1e-5,
        ),
    ),
    covers=(
        "luthier.methods.prompts.persoma",
        "luthier.sources.history",
        "luthier.models.histories",
        "luthier.methods.low_rank.lora",
        "luthier.methods.low_rank.pair",
        "testbed:bert",
        "testbed:llama",
    ),
    data="users with 50 texts each, drawn here: 25 films of one genre, then 25 of another, which they like now; the Llama testbed",
    against="the events as text in front of the question, and one soft token made from the mean of their vectors; the same LoRA and "
    "steps, each at its own best of three learning rates",
    minutes=9,
    notes="Accuracy with another user's history is of the first seed's eight tokens, over the most frequent class of the test rows.",
)


def vectors(rows: int, items: int, width: int) -> tuple[Any, Any]:
    import torch

    rng = torch.Generator().manual_seed(0)
    x = torch.randn(rows, items, width, generator=rng)
    seen = torch.ones(rows, items, dtype=torch.bool)
    seen[1, items // 2 :] = False
    return x / x.norm(dim=-1, keepdim=True), seen


@CHECK.measures("padding", "order", cheap=True)
def what_does_not_matter(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.sources.history import History

    for name in ("bert", "llama"):
        model = run.model(name, dtype="float64")
        batch = inputs(model, 4, 9)
        for adapter in ("mlp", "transformer", "perceiver"):
            source = History(adapter=adapter, inner=32)  # type: ignore[arg-type]
            method = lt.methods.Persoma(length=LENGTH, source=source)
            made = Adaptation.new(method, model.base).to(torch.float64)
            adapted: Any = Adapted(model.base)

            def said(x: Any, seen: Any, adapted: Any = adapted, made: Any = made, batch: Any = batch) -> Any:
                with torch.no_grad(), adapted.attached(made):
                    out = adapted({**batch, "history": x, "history_mask": seen})
                    return out.hidden if out.logits is None else out.logits

            x, seen = vectors(4, 12, source.item_width)
            want = said(x, seen)
            if torch.allclose(want, said(x.flip(0), seen), atol=1e-3):
                raise RuntimeError("the history changes nothing, so that equality would show nothing")
            more = torch.cat([x, torch.full_like(x, 3.0)], 1)
            there = torch.cat([seen, torch.zeros_like(seen)], 1)
            run.record("padding", (said(more, there) - want).abs().max(), arm=f"{name}, {adapter}")
            if adapter == "perceiver":
                order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
                moved = said(x[:, order], seen[:, order])
                run.record("order", (moved - want).abs().max(), arm=name)


def users() -> tuple[Any, Any]:
    """(the events as histories, the same as text in front of the question)."""
    import random

    import numpy as np

    from luthier.data.split import Data, Split
    from luthier.data.task import Task

    rng, names = random.Random(0), tuple(GENRES)
    history, text = {}, {}
    for part, n in ROWS.items():
        inputs, events, labels = [], [], []
        for _ in range(n):
            before, now = rng.sample(range(len(names)), 2)
            half = EVENTS // 2
            films = rng.choices(GENRES[names[before]], k=half) + rng.choices(
                GENRES[names[now]], k=EVENTS - half
            )
            inputs.append("What does the user like now?")
            events.append(tuple(f"saw {film}" for film in films))
            labels.append(now)
        targets = np.array(labels)
        history[part] = Split(inputs, targets, histories=events)
        text[part] = Split([f"{' '.join(e)} {x}" for x, e in zip(inputs, events, strict=True)], targets)
    made = []
    for parts, column in ((history, "events"), (text, "")):
        kind = Task(
            kind="classification", modality="text", labels=names, input="text", label="genre", history=column
        )
        made.append(Data(parts["train"], parts["validation"], parts["test"], kind, "users"))
    return made[0], made[1]


@CHECK.measures("text", "mean", "share", "another")
def what_a_history_is_worth(run: Any) -> None:
    import numpy as np
    import torch
    from torch.nn import functional as F

    import luthier as lt
    from luthier.data.split import Split
    from luthier.sources.history import History, items_of

    class Mean(History):
        """One token of the items' mean."""

        def make(self, part, site, t, ctx, made=None):  # type: ignore[no-untyped-def]
            x, seen = items_of(ctx, t["nobody"])
            mean = (x * seen[..., None]).sum(1, keepdim=True) / seen.sum(1)[:, None, None]
            return {"P": F.linear(F.gelu(F.linear(mean, t["W1"], t["b1"])), t["W2"], t["b2"])}

    model, (events, text) = run.model("llama"), users()
    rows = model.preprocess.encode(text.test.inputs)
    if any(rows.truncated):
        raise RuntimeError("the histories as text do not fit the model, which the comparison is about")
    bare = len(model.preprocess.encode(events.test.inputs[:1])[0]["input_ids"])
    run.record("share", LENGTH / (float(np.mean([len(r["input_ids"]) for r in rows])) - bare))

    persoma = lt.methods.Persoma(length=LENGTH, source=History(items=EVENTS), lora_rank=RANK)
    mean = lt.methods.Persoma(length=1, source=Mean(items=EVENTS), lora_rank=RANK)
    settings: dict[str, Any] = {"seeds": SEEDS, **SETTINGS}
    run.compare(["text", "mean"], model, events, {"persoma": persoma}, **settings)
    rate = next(r.about["rate"] for r in run.records if r.arm == "persoma")
    run.compare("mean", model, events, {"mean": mean}, **settings)
    lora = lt.methods.LoRA(rank=RANK, alpha=2.0 * RANK)
    run.compare("text", model, text, {"text": lora}, **settings)

    def others() -> float:
        fitted = run.fit(model, events, persoma, seed=SEEDS[0], rate=rate, **SETTINGS)
        test = events.test
        order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0)).tolist()
        moved = Split(test.inputs, test.targets, histories=[test.histories[i] for i in order])
        return float(fitted.score(moved)["accuracy"])

    most = np.bincount(events.test.targets).max() / len(events.test)
    run.record("another", run.once(["another"], others) - most)
