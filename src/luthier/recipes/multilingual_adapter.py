"""One adapter for several languages (Wang et al. 2023, "One Adapter for All Programming Languages?", S049).

One set of bottleneck adapters, after the self-attention and the feed-forward output of every block of the frozen model, is trained on
the pooled pairs of all languages: to find code by a comment (retrieval) or to write the comment (text2text). Scores are each language's
own, over its own candidates.

    languages = {"python": lt.data("py.csv", kind="retrieval"), "ruby": lt.data("rb.csv", kind="retrieval")}
    made = one_adapter(model, languages, per_language=LOW_RESOURCE, out="run/")
    made.scores["ruby"]["mrr"];  forgotten = probed(model, {"adapter": made.fitted}, languages)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.split import Data, Split
from luthier.data.task import Task
from luthier.errors import DataError, OptionError
from luthier.instruments.probing import Probed, probing
from luthier.methods.adapters.bottleneck import Adapter
from luthier.train.fit import fit

WIDTH = 128
"""S049's bottleneck, for models of width 768."""
LOW_RESOURCE = 200
"""Pairs of each language that S049 finds to come near to all of them."""
KINDS = ("retrieval", "text2text")


@dataclass
class Multilingual:
    """What was fitted for all languages, and each one's test scores."""

    fitted: Any
    scores: dict[str, dict[str, float]]
    rows: dict[str, int]
    """Training pairs of each language."""
    share: float
    """Trained numbers as a share of the model's."""

    def card(self) -> dict[str, Any]:
        return {"rows": self.rows, "share": self.share, "scores": self.scores}


def adapter(model: Any, kind: str, width: int = WIDTH) -> Adapter:
    """The study's adapter for a model; for retrieval in the tower that is read, of an encoder-decoder the encoder."""
    several = kind == "retrieval" and len(model.structure.towers) > 1
    tower = f"{model.structure.towers[0].name}:" if several else ""
    return Adapter(width=width, targets=f"{tower}*attention.output | {tower}mlp.down")


def pooled(languages: Mapping[str, Data], per_language: int | None = None, seed: int = 0) -> Data:
    """The training and validation rows of all languages together, as one task; no test rows.

    per_language: so many training pairs of each, drawn by the seed; None, or where there are fewer: all. Raises OptionError for fewer
    than two languages, for another task than retrieval or text2text, and for tasks that differ.
    """
    if len(languages) < 2:
        raise OptionError("One adapter for several languages needs two at least: give each one's data.")
    first = next(iter(languages.values())).task
    for name, data in languages.items():
        if data.task.kind not in KINDS or data.task.kind != first.kind:
            raise OptionError(
                f"{name!r} is a {data.task.kind}: all languages must be {' or all be '.join(KINDS)}. Load them with one kind."
            )
    if per_language is not None and per_language < 1:
        raise OptionError(f"per_language={per_language}: at least 1 pair of each language.")
    rng = np.random.default_rng(seed)
    kept = []
    for data in languages.values():
        order = rng.permutation(len(data.train))
        kept.append(data.train.select(np.sort(order[:per_language])))
    validations = [data.validation for data in languages.values() if data.validation is not None]
    return Data(
        _joined(kept),
        _joined(validations) if validations else None,
        None,
        first,
        " + ".join(languages),
        (f"{len(languages)} languages, {', '.join(f'{n} {len(k)}' for n, k in zip(languages, kept))} pairs",),
    )


def _joined(splits: Sequence[Split]) -> Split:
    """Rows one after the other; what a row is told beside its pair is left out, as languages need not all have it."""
    inputs: list[Any] = []
    targets: list[Any] = []
    for split in splits:
        inputs += list(split.inputs)
        targets += list(split.targets) if split.targets is not None else []
    return Split(inputs, targets)


def one_adapter(
    model: Any,
    languages: Mapping[str, Data],
    *,
    method: Any = None,
    width: int = WIDTH,
    per_language: int | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    **settings: Any,
) -> Multilingual:
    """Train one adapter on all languages, and score it on each one's own test rows.

    method: instead of the study's adapter of `width`, such as full tuning to compare with. settings go to `luthier.fit`, which
    writes and resumes in `out`. Raises what `pooled` and `fit` do.
    """
    data = pooled(languages, per_language, seed)
    chosen = method or adapter(model, data.task.kind, width)
    fitted = fit(model, data, chosen, out=out, seed=seed, **settings)
    scores = {n: fitted.score(d.test) for n, d in languages.items() if d.test is not None}
    rows = {n: min(len(d.train), per_language or len(d.train)) for n, d in languages.items()}
    trained = fitted.adaptation.counts()["method"]
    return Multilingual(fitted, scores, rows, trained / sum(p.numel() for p in model.base.parameters()))


def named_by_language(languages: Mapping[str, Data]) -> Data:
    """The code of all languages as a classification by language: what is found in retrieval, what is read to be summarised."""
    parts: dict[str, Split] = {}
    for part in ("train", "test"):
        texts: list[str] = []
        labels: list[int] = []
        for number, data in enumerate(languages.values()):
            split = getattr(data, part) or (data.validation if part == "test" else None)
            if split is None:
                raise DataError(f"{data.name} has no rows to test a probe on: give a split with a test part.")
            own: Any = split.targets if data.task.kind == "retrieval" else split.inputs
            texts += list(own)
            labels += [number] * len(own)
        parts[part] = Split(texts, np.array(labels, dtype=np.int64))
    task = Task(
        kind="classification", modality="text", labels=tuple(languages), input="code", label="language"
    )
    return Data(parts["train"], None, parts["test"], task, " + ".join(languages))


def probed(
    model: Any,
    tuned: Mapping[str, Any],
    languages: Mapping[str, Data],
    *,
    layers: Sequence[int] = (),
    seed: int = 0,
) -> list[Probed]:
    """What tuning forgot of the code: its lexemes' kinds and its language (`luthier.instruments.probing`)."""
    return probing(model, tuned, named_by_language(languages), layers=layers, label="language", seed=seed)
