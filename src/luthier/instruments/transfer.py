"""What crosses languages: a prompt that is trained in one, scored in others, by its length and by what trains with it (S300).

length in {1, 5, 10, 50}, plain or through an MLP, the model frozen or trained along: accuracy by language, beside the numbers
that each trains. The learning rate of each is chosen on the source language's validation rows; no other language chooses anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from luthier.errors import OptionError
from luthier.instruments.languages import distance

LENGTHS = (1, 5, 10, 50)
RATES = (1 / 3, 1.0, 3.0)
"""Multiples of each method's own learning rate that are tried."""
SOURCE = "source"
"""What the language that is trained on is called."""


@dataclass
class Arm:
    """One way of training, and its scores: {language: {seed: score}}."""

    length: int
    reparameterised: bool
    frozen: bool
    method: Any
    trained: int
    """Numbers that train."""
    kept: int
    """Numbers of the prompt that is used in the end: length * width."""
    rate: float = 0.0
    scores: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        made = f"{self.length}{', MLP' if self.reparameterised else ''}"
        return made if self.frozen else f"{made}, with the model"

    def mean(self, language: str) -> float:
        return fmean(self.scores[language].values())

    def ratio(self, language: str) -> float:
        """The score in a language as a share of the source's; nan where that is 0."""
        source = self.mean(SOURCE)
        return self.mean(language) / source if source else float("nan")


@dataclass(frozen=True)
class Transfer:
    """All arms on the same rows and seeds. distances: of each language to the source."""

    arms: list[Arm]
    distances: dict[str, float]
    metric: str

    def card(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "metric": self.metric,
            "distances": self.distances,
            "arms": [
                {
                    "length": arm.length,
                    "reparameterised": arm.reparameterised,
                    "frozen": arm.frozen,
                    "trained": arm.trained,
                    "kept": arm.kept,
                    "rate": arm.rate,
                    "scores": arm.scores,
                    "mean": {name: arm.mean(name) for name in arm.scores},
                    "ratio": {name: arm.ratio(name) for name in self.distances},
                }
                for arm in self.arms
            ],
        }


def arms(
    base: Any,
    lengths: Iterable[int] = LENGTHS,
    *,
    reparameterise: Sequence[bool] = (False, True),
    frozen: Sequence[bool] = (True, False),
    model_rate: float = 5e-5,
) -> list[Arm]:
    """The ways of training: each length, plain or through an MLP (two layers, as wide as the prompt, without a skip), the model
    frozen or not. model_rate: of the model's parameters."""
    from luthier import methods
    from luthier.host import Adaptation
    from luthier.host.structure import structure_of
    from luthier.sources.residual import Residual

    made = []
    width = methods.PromptTuning().sites(structure_of(base))[0].out_features
    for length in lengths:
        for mlp in reparameterise:
            options = {"source": Residual(bottleneck=width, norm=False, skip=False)} if mlp else {}
            prompt = methods.PromptTuning(length=length, **options)
            numbers = int(Adaptation.new(prompt, base).counts()["method"])
            for still in frozen:
                method: Any = prompt
                if not still:
                    method = methods.PromptAndModel(length=length, model_rate=model_rate, **options)
                whole = numbers + (0 if still else sum(p.numel() for p in base.parameters()))
                made.append(Arm(length, mlp, still, method, whole, length * width))
    return made


def scored(fitted: Any, splits: Mapping[str, Any]) -> dict[str, float]:
    """The headline metric on each language's rows."""
    return {name: float(fitted.score(split)[fitted.task.metric]) for name, split in splits.items()}


def distances_of(
    data: Any, targets: Mapping[str, Any], known: Mapping[str, float] | None = None
) -> dict[str, float]:
    """How far each language's rows are from the source's, by their characters, where `known` does not say."""
    known = known or {}
    if odd := [name for name in known if name not in targets]:
        raise OptionError(
            f"A distance is given for {odd[0][:60]!r}, which is no target. There are: {', '.join(targets)}."
        )
    return {
        name: known[name] if name in known else distance(texts(data.train), texts(split))
        for name, split in targets.items()
    }


def texts(split: Any) -> list[str]:
    """The rows' texts; of a pair, both as one."""
    return [x if isinstance(x, str) else " ".join(x) for x in split.inputs]


def transfer(
    model: Any,
    data: Any,
    targets: Mapping[str, Any],
    *,
    lengths: Iterable[int] = LENGTHS,
    reparameterise: Sequence[bool] = (False, True),
    frozen: Sequence[bool] = (True, False),
    model_rate: float = 5e-5,
    seeds: Iterable[int] = (0,),
    rates: Iterable[float] = RATES,
    known: Mapping[str, float] | None = None,
    progress: Callable[[str], None] | None = None,
    **settings: Any,
) -> Transfer:
    """Train every arm on `data`, and score it on data.test (the source) and on `targets`, {language: rows with targets}.

    rates: multiples of each method's own rate, tried with the first seed. known: distances of languages, where they should not be
    worked out from the characters. progress: a function that is told of every arm as it begins, or None. settings go to `luthier.fit`; a model
    that writes answers by the labels' own words unless `signal` says otherwise. The model is given back untouched. Raises
    OptionError for data without validation and test rows.
    """
    from luthier.train.fit import fit

    seeds, rates = list(seeds), list(rates)
    if data.validation is None or data.test is None or not targets or not seeds or not rates:
        raise OptionError(
            "transfer needs validation and test rows of the source, a target language, a seed and a rate at least."
        )
    if SOURCE in targets:
        raise OptionError(f"No target language can be called {SOURCE!r}: that is what was trained on.")
    sign = 1 if data.task.higher_is_better else -1
    writes = model.generates and data.task.kind == "classification"
    settings = {"evaluate_every": 1_000_000, "signal": "choices" if writes else "auto", **settings}
    splits = {SOURCE: data.test, **targets}
    distances = distances_of(data, targets, known)
    made = arms(model.base, lengths, reparameterise=reparameterise, frozen=frozen, model_rate=model_rate)
    for number, arm in enumerate(made, 1):
        if progress:
            progress(f"{number} of {len(made)}: prompt of {arm.name}")
        found = {
            r: fit(
                model, data, arm.method, seed=seeds[0], rate=arm.method.rate * r, progress=False, **settings
            )
            for r in rates
        }
        best = max(found, key=lambda r: sign * found[r].score(data.validation)[data.task.metric])
        arm.rate = float(arm.method.rate) * best
        for seed in seeds:
            fitted = (
                found[best]
                if seed == seeds[0]
                else fit(model, data, arm.method, seed=seed, rate=arm.rate, progress=False, **settings)
            )
            for name, score in scored(fitted, splits).items():
                arm.scores.setdefault(name, {})[seed] = score
    return Transfer(made, distances, data.task.metric)
