"""S201, VL-Adapter (Sung et al. 2022): one adapter that several tasks share, beside an adapter for each."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Equals

TASKS = ("shop", "city", "day", "name")
TRAIN, HELD_OUT = 48, 50
"""Rows of each task."""
WIDTH = 16
SETTINGS: dict[str, Any] = {"steps": 200, "batch_size": 16, "max_new_tokens": 6}
SHARINGS = ("single", "half", "multiple")

CHECK = Check(
    "S201",
    "One adapter for four related tasks holds a quarter of the numbers of an adapter for each and, with few rows, is no worse.",
    claims=(
        Equals("count", "numbers beside the formulas of single, half and multiple (difference)", 0),
        AtMost("start", "before training: largest difference from the base's logits, by sharing", 1e-6),
        Beats(
            "shared",
            "exact answers of the shared adapter at least those of separate ones, mean of 3 seeds",
            arm="single",
            over="multiple",
            ties=True,
        ),
    ),
    covers=(
        "luthier.methods.adapters.vl_adapter",
        "luthier.methods.adapters.bottleneck",
        "luthier.sources.by_label",
        "luthier.sources.labels",
        "testbed:t5",
    ),
    data="the T5 testbed; four tasks over one kind of sentences, 48 rows each: whose group a thing belongs to, under a task's own four names",
    against="an adapter for each task, and one with shared projections down, each at its own best of five learning rates",
    minutes=9,
    notes="The catalogue asks for tasks of images and texts. There is no vision-language testbed yet: the tasks are of texts, every "
    "input asks for its own, and the row stays partial.",
)


def joint(run: Any) -> Any:
    """All tasks' rows together; the attribute of a row is its task."""
    import numpy as np

    from luthier.models.testbeds.tasks import as_text2text
    from luthier.models.testbeds.words import CITIES, DAYS, NAMES

    whole = run.data("departments")
    names = dict(zip(TASKS, (whole.task.labels, CITIES[:4], DAYS[:4], NAMES[:4]), strict=True))

    def mixed(part: Any, rows: int, seed: int) -> Any:
        order = list(range(len(TASKS) * rows))
        random.Random(seed).shuffle(order)
        told = [TASKS[i // len(TASKS) % len(TASKS)] for i in order]  # labels take turns row by row
        sentences = [part.inputs[i].partition(" Which ")[0] for i in order]
        inputs = [
            f"{text} Which {task}? Choices: {', '.join(names[task])}."
            for text, task in zip(sentences, told, strict=True)
        ]
        targets = [names[task][int(part.targets[i])] for i, task in zip(order, told, strict=True)]
        return replace(part, inputs=inputs, targets=targets, attributes=np.array(told)[:, None])

    task = as_text2text(whole).task.model_copy(update={"attributes": ("task",)})
    parts = [
        mixed(p, n, i)
        for i, (p, n) in enumerate(
            ((whole.train, TRAIN), (whole.validation, HELD_OUT), (whole.test, HELD_OUT))
        )
    ]
    return replace(whole, train=parts[0], validation=parts[1], test=parts[2], task=task, name="four tasks")


def method(sharing: str) -> Any:
    import luthier as lt

    return lt.methods.VLAdapter(tasks=", ".join(TASKS), sharing=sharing, width=WIDTH)  # type: ignore[arg-type]


@CHECK.measures("count", "start", cheap=True)
def what_is_shared(run: Any) -> None:
    import torch

    from luthier.host import Adaptation, Adapted

    model = run.model("t5")
    adapted: Any = Adapted(model.base)
    ids = torch.randint(5, 200, (4, 9), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "decoder_input_ids": ids[:, :4]}
    with torch.no_grad():
        want = adapted(batch).logits
    n = len(TASKS)
    for sharing in SHARINGS:
        made = Adaptation.new(method(sharing), model.base)
        d, k = made.at()[0].site.out_features, WIDTH
        down, up = k * d + k, d * k + d
        formula = {"single": down + up, "half": down + n * up, "multiple": n * (down + up)}[sharing]
        run.record("count", made.counts()["method"] - len(made.at()) * formula, arm=sharing)
        with torch.no_grad(), adapted.attached(made):
            told = {**batch, "attributes": list(TASKS)}
            run.record("start", (adapted(told).logits - want).abs().max(), arm=sharing)
            for p in made.trainable().values():
                p.add_(0.1)
            if torch.allclose(adapted(told).logits, want, atol=1e-2):
                raise RuntimeError("the adapters change nothing, so that equality would show nothing")


@CHECK.measures("shared")
def four_tasks_of_few_rows(run: Any) -> None:
    arms = {sharing: method(sharing) for sharing in SHARINGS}
    run.compare("shared", run.model("t5"), joint(run), arms, rates=(1 / 3, 1, 3, 9, 27), **SETTINGS)
