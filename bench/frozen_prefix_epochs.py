"""Epochs after the first with the frozen-prefix cache, against epochs of peft's LoRA on the same batches, in turns.

python bench/frozen_prefix_epochs.py [--threads 2]    MiniLM, 192 texts of about 64 tokens, batches of 32

LST (reductions 8 and 4) against LoRA of rank 8 on query and value; LoRA on the upper third of the layers against peft's on all layers
and on the same ones. What filling the cache took is stored beside.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import timing


def texts(rows: int) -> Any:
    """Summaries from the standard library's documentation, five to a text, with the topic of the first."""
    import luthier as lt

    found = lt.data("builtin:pydocs").train
    inputs, targets = list(found.inputs), [str(t) for t in found.targets]
    made = [" ".join(inputs[(5 * i + j) % len(inputs)] for j in range(5)) for i in range(rows)]
    made = [" ".join(text.split()[:45]) for text in made]
    return lt.data(
        {"text": made, "label": targets[: 5 * rows : 5]}, input="text", label="label", split=(1, 0, 0)
    )


@contextlib.contextmanager
def ours(model: Any, data: Any, method: Any, cache: str = "auto") -> Iterator[tuple[Callable[[], None], Any]]:
    """(one epoch, the job): the steps of `lt.fit`."""
    from luthier.train.beginning import head_for, new_adaptation
    from luthier.train.fit import Job
    from luthier.train.processes import Processes
    from luthier.train.settings import Settings

    settings, head = Settings(epochs=1000, batch_size=32, cache=cache), head_for(model, data)
    adaptation = new_adaptation(method, model, data, settings, head, None)
    job = Job(model, data, adaptation, settings, Processes(model.device), None, None, head, {}, {}, False, None)
    with job:
        job.run.enter()
        with job.frozen_prefix():
            if not job.watch.cached:
                raise RuntimeError(f"nothing is cached: {job.watch.uncached}")

            def epoch() -> None:
                for _ in range(job.per_epoch):
                    job.run.gradient_step()
                    job.run.step, job.run.total = job.run.step + 1, job.run.total + 1

            yield epoch, job


def peer(base: Any, job: Any, **where: Any) -> Callable[[], None]:
    """One epoch of peft's LoRA over the batches of a job, with clipping and AdamW as there."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch import nn

    model = get_peft_model(
        base, LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], **where)
    ).eval()
    head = nn.Linear(384, len(job.task.labels))
    trained = [p for p in [*model.parameters(), *head.parameters()] if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    done = 0

    def epoch() -> None:
        nonlocal done
        for _ in range(job.per_epoch):
            batch = job.run.batches.whole("train", done)
            done += 1
            optimiser.zero_grad(set_to_none=True)
            inputs = {k: v for k, v in batch.items() if k not in ("labels", "example")}
            hidden, mask = model(**inputs).last_hidden_state, batch["attention_mask"][:, :, None].float()
            logits = head((hidden * mask).sum(1) / mask.sum(1))
            nn.functional.cross_entropy(logits, batch["labels"]).backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()

    return epoch


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    given = timing.arguments(__doc__, argv)
    import luthier as lt
    from luthier.methods.low_rank.lora import LoRA
    from luthier.methods.side.lst import LST

    rows, pairs = (16, 1) if given.smoke else (192, given.pairs or 4)
    model = lt.load("builtin:minilm", device="cpu")
    data, version, figures = texts(rows), timing.peft_version(), []
    upper = LoRA(rank=8, targets="attention.query[-2:] | attention.value[-2:]")
    cases: list[tuple[str, Any, list[tuple[str, float, dict[str, Any]]]]] = [
        (
            "LST epochs after the first, reduction 8 as in its paper",
            LST(reduction=8),
            [("peft LoRA", 0.15, {})],
        ),
        ("LST epochs after the first, reduction 4", LST(reduction=4), [("peft LoRA", 0.15, {})]),
        (
            "epochs after the first, LoRA on the upper third",
            upper,
            [
                ("peft on all layers", 0.4, {}),
                ("peft on the same layers", 0.65, {"layers_to_transform": [4, 5]}),
            ],
        ),
    ]
    for name, method, beside in cases:
        untouched = copy.deepcopy(model.base)
        with ours(model, data, method) as (epoch, job):
            for against, limit, where in beside:
                theirs = peer(copy.deepcopy(untouched), job, **where)
                runs: dict[str, Any] = timing.in_turns(epoch, theirs, pairs, warm=1)
                figures.append(timing.beside(f"{name}, against {against}", runs, limit, version))
                runs["seconds to fill the cache"] = job.watch.seconds["cache"]
    return timing.write("frozen_prefix_epochs", figures, given)


if __name__ == "__main__":
    main()
