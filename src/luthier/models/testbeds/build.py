"""Building a testbed: pretrain by its recipe, write its folder, measure what was written."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier.errors import ModelError
from luthier.models.testbeds import card
from luthier.models.testbeds.pretrain import pretrain
from luthier.models.testbeds.recipe import Figures, Recipe, digest, recipe


def build(
    name: str,
    out: Path,
    *,
    steps: int | None = None,
    seed: int | None = None,
    quick: bool = False,
    told: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> card.Card:
    """Pretrain testbed `name` and write its folder `out`, which may not hold anything else; returns its card.

    steps and seed: other than the recipe's; with other steps there is no second stage. quick: measure on fewer held-out instances. told: called after every
    step with its number, their number and the loss. The folder is written aside and then renamed.
    Raises ModelError for an unknown testbed and for a folder that holds something else.
    """
    made = recipe(name)
    if seed is not None:
        made = replace(made, seed=seed)
    if steps is not None:
        if steps < 1:
            raise ModelError(f"{steps} steps train nothing. Give at least 1.")
        made = replace(made, steps=steps, second={})
    if out.exists() and any(p.name != card.FILE and not _ours(p) for p in out.iterdir()):
        raise ModelError(f"{str(out)!r} holds other files. Name a new folder, or one that a testbed lies in.")
    run = getattr(made.module, "pretrain", pretrain)
    base, seconds = run(made, told=lambda step, number, loss, _: told(step, number, loss))
    return write(base, made, out, seconds=seconds, quick=quick)


def _ours(path: Path) -> bool:
    return path.is_file() and path.suffix in (".json", ".safetensors")


def write(base: nn.Module, made: Recipe, out: Path, *, seconds: float, quick: bool = False) -> card.Card:
    """Write weights in float16, configuration, and tokenizer or image settings, load them as a user would,
    measure, and write the card."""
    aside = out.with_name(out.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    base = getattr(made.module, "kept", lambda trained: trained)(base)
    base.to(torch.float16)
    base.save_pretrained(aside)  # type: ignore[operator]
    made.module.write_files(made, aside)
    figures = measured(aside, made, quick)
    (aside / card.WEIGHTS).chmod(0o644)  # the library writes it for its owner alone
    weights = (aside / card.WEIGHTS).read_bytes()
    result = card.Card(
        name=made.name,
        about=made.about,
        recipe=digest(made),
        seed=made.seed,
        corpus=made.corpus,
        steps=made.total,
        seconds=round(seconds, 1),
        parameters=sum(p.numel() for p in base.parameters()),
        bytes=len(weights),
        sha256=hashlib.sha256(weights).hexdigest(),
        files={
            p.name: hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(aside.iterdir())
            if p.name != card.WEIGHTS
        },
        held_out=rounded(figures.held_out),
        skills=rounded(figures.skills),
        versions=card.versions(),
    )
    result.write(aside)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(aside, out)
    return result


def measured(folder: Path, made: Recipe, quick: bool = False) -> Figures:
    """The held-out figures of the weights in a folder."""
    from luthier.models.load import load

    loaded: Any = load(folder, device="cpu", dtype="float32")
    return made.module.measure(loaded, quick)


def rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in figures.items()}
