"""What tuning forgets: linear probes of a model's frozen features, before against after (S049).

accuracy(model, layer, property) of a ridge regression from the features of a layer to a property of the text, fitted on training rows,
on other rows;  loss = accuracy(base) - accuracy(tuned)

Properties: `token`, the kind of each lexeme (`luthier.data.lexemes`), read at its first token; and the rows' own label, such as the
language, read from the mean over a row's tokens. Each model gets a probe of its own: what is lost is what no linear map finds any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from luthier.data.lexemes import KINDS, lexemes
from luthier.errors import DataError, ModelError, OptionError
from luthier.models.model import Model
from luthier.models.words import WordRows, encode_spans

TOKEN = "token"
LEXEMES = 4000
"""Lexemes that a probe is fitted on at most, and that it is tested on, drawn at random."""
BATCH = 64


@dataclass(frozen=True)
class Probed:
    """One property at one layer. accuracy: by model, `base` first; most_frequent: of always saying the most frequent value."""

    property: str
    layer: int
    accuracy: dict[str, float]
    most_frequent: float
    fitted: int
    tested: int

    def loss(self, name: str) -> float:
        """Accuracy that the base has beyond a tuned model."""
        return self.accuracy["base"] - self.accuracy[name]

    def card(self) -> dict[str, Any]:
        lost = {name: self.loss(name) for name in self.accuracy if name != "base"}
        return {**vars(self), "loss": lost}


def probing(
    model: Any,
    tuned: Mapping[str, Any],
    data: Any,
    *,
    layers: Sequence[int] = (),
    label: str = "label",
    seed: int = 0,
) -> list[Probed]:
    """Probes of `model` and of what was tuned from it, on the same rows.

    tuned: by name, an adaptation of `model` (or what fit returned) or a model of its own. data: a classification of texts; its
    training rows fit the probes, its test (else validation) rows test them, and its label is probed under the name `label` beside
    the kinds of lexemes; other data of texts are probed for those alone. layers: numbers of blocks, from 1; none: the last.
    A property that is the same everywhere (plain words are all names) is left out. Raises OptionError, DataError or ModelError for
    what cannot be probed.
    """
    from luthier.models.testbeds.probes import ridge

    test = data.test if data.test is not None else data.validation
    if test is None or data.task.modality != "text":
        raise DataError(
            f"{data.name}: a probe reads texts, some of them to be tested on: give data with one text column."
        )
    if "base" in tuned:
        raise OptionError("The model itself is called 'base': give what was tuned another name.")
    blocks = len(_blocks(model))
    chosen = tuple(layers) or (blocks,)
    if bad := [n for n in chosen if not 1 <= n <= blocks]:
        raise OptionError(f"{model.name} has no layer {bad[0]}: its blocks are 1 to {blocks}.")
    parts = {"train": list(data.train.inputs), "test": list(test.inputs)}
    marks = {name: [lexemes(text) for text in texts] for name, texts in parts.items()}
    seen = {
        (name, part): features(model, one, texts, marks[part], chosen)
        for name, one in {"base": None, **tuned}.items()
        for part, texts in parts.items()
    }
    rng = np.random.default_rng(seed)
    kinds, there = {}, {}
    for part in parts:
        kinds[part] = np.array([KINDS.index(kind) for row in marks[part] for _, _, kind in row])
        held = [seen[name, part][chosen[0]][1] for name in ("base", *tuned)]
        everywhere = np.flatnonzero(np.logical_and.reduce([np.isfinite(x[:, 0]) for x in held]))
        there[part] = rng.permutation(everywhere)[:LEXEMES]
    wanted = [(TOKEN, 1, {part: kinds[part][there[part]] for part in parts}, there)]
    if data.task.kind == "classification":
        answers = {"train": np.asarray(data.train.targets), "test": np.asarray(test.targets)}
        wanted.append((label, 0, answers, {part: np.arange(len(texts)) for part, texts in parts.items()}))
    found = []
    for layer in chosen:
        for name, which, y, at in wanted:
            if len(np.unique(y["train"])) < 2 or not len(y["test"]):
                continue
            accuracy = {
                who: ridge(seen[who, "train"][layer][which][at["train"]], y["train"],
                           seen[who, "test"][layer][which][at["test"]], y["test"])
                for who in ("base", *tuned)
            }  # fmt: skip
            often = float((y["test"] == np.bincount(y["train"]).argmax()).mean())
            found.append(Probed(name, layer, accuracy, often, len(y["train"]), len(y["test"])))
    if not found:
        raise DataError(
            f"{data.name}: there is nothing to probe, since all training texts are of one label and one kind of lexeme. Give more rows."
        )
    return found


def _blocks(model: Any) -> list[str]:
    towers = model.structure.towers
    if getattr(model.preprocess, "kind", None) != "text" or not towers or not towers[0].blocks:
        raise ModelError(f"{model.name} has no blocks that read texts: there is nothing to probe.")
    return list(towers[0].blocks)


@torch.no_grad()
def features(
    model: Any,
    tuned: Any,
    texts: Sequence[str],
    marks: Sequence[Sequence[tuple[int, int, str]]],
    layers: Sequence[int],
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """{layer: ((texts, width) means over tokens, (lexemes, width) at each lexeme's first token, NaN where it is cut off)}.

    tuned: None, the model itself; an adaptation of it; or another model. Of prompts only the texts' own tokens count.
    """
    from luthier.host import Adapted

    adaptation = getattr(tuned, "adaptation", tuned)
    if isinstance(adaptation, Model):
        model, adaptation = adaptation, None
    paths = _blocks(model)
    if max(layers) > len(paths):
        raise OptionError(f"{model.name} has no layer {max(layers)}: its blocks are 1 to {len(paths)}.")
    rows = encode_spans(model.preprocess, texts, [[(a, b) for a, b, _ in own] for own in marks])
    held: dict[int, Any] = {}
    made: dict[int, tuple[list[Any], list[Any]]] = {
        n: ([None] * len(texts), [None] * len(texts)) for n in layers
    }
    adapted = Adapted(model.base)
    with ExitStack() as stack:
        if adaptation is not None:
            stack.enter_context(adapted.attached(adaptation))
        adapted.eval()
        for n in layers:
            hook = _Keeps(held, n).hook
            stack.callback(model.base.get_submodule(paths[n - 1]).register_forward_hook(hook).remove)
        order = sorted(range(len(texts)), key=lambda i: len(rows[i]["input_ids"]))
        for begin in range(0, len(order), BATCH):
            at = order[begin : begin + BATCH]
            _read(adapted, model, rows, at, held, made)
    return {n: (np.stack(means), np.concatenate(tokens)) for n, (means, tokens) in made.items()}


def _read(adapted: Any, model: Any, rows: WordRows, at: list[int], held: dict[int, Any], made: Any) -> None:
    batch = {k: v.to(model.device) for k, v in model.preprocess.collate([rows[i] for i in at]).items()}
    adapted(batch, body=True)
    mask = batch["attention_mask"].bool()
    for n, (means, tokens) in made.items():
        hidden = held[n][:, -mask.shape[1] :].float()  # prompts stand in front
        for row, i in enumerate(at):
            own = hidden[row][mask[row]].cpu().numpy()
            starts = rows.starts[i]
            picked = own[starts]
            picked[starts < 0] = np.nan
            means[i], tokens[i] = own.mean(0), picked


class _Keeps:
    """Keeps what a block returned last."""

    def __init__(self, held: dict[int, Any], layer: int):
        self.held, self.layer = held, layer

    def hook(self, module: Any, args: Any, out: Any) -> None:
        self.held[self.layer] = out[0] if isinstance(out, tuple) else out
