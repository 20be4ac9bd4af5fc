"""Running a check: what its functions record, each arm at its own best learning rate, and resuming after a kill."""

from __future__ import annotations

import datetime
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from luthier.errors import DataError, OptionError, RunError
from luthier.papers.check import Check, Measure
from luthier.papers.results import FORMAT, Record, Result, Stored, fingerprint

RATES = (1 / 3, 1.0, 3.0)
"""Multiples of a method's own learning rate that each arm tries, unless a check says otherwise."""
FURTHER = 2
"""How many more an arm may try while its best one is at an end of those."""
SHARED = "LUTHIER_SHARED_DATA"
"""Names the folder of real data sets that some checks measure on; they are not shipped."""


def explored(rates: Sequence[float], score: Callable[[float], float]) -> float:
    """The factor with the highest score; of equals the one nearest to 1.

    While it is at an end, up to FURTHER more are tried beyond it, in steps as wide as the last. A fit that fails there, its loss no
    longer finite, is worse than any.
    """
    found = {factor: score(factor) for factor in rates}

    def best() -> float:
        return max(found, key=lambda f: (found[f], -abs(math.log(f))))

    for _ in range(FURTHER if len(found) > 1 else 0):
        tried = sorted(found)
        if best() not in (tried[0], tried[-1]):
            break
        end, beside = (tried[0], tried[1]) if best() == tried[0] else (tried[-1], tried[-2])
        try:
            found[end * end / beside] = score(end * end / beside)
        except RunError:
            break
    return best()


@dataclass
class Run:
    """What a check's function is given."""

    check: Check
    work: Path | None = None
    """Where what is done is kept, so that a check that was killed goes on. None: nowhere."""
    say: Callable[[str], None] = lambda text: None
    records: list[Record] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)
    _allowed: tuple[str, ...] = ()
    _kept: dict[str, Any] = field(default_factory=dict)
    _before: float = 0.0
    """Seconds that an interrupted run had spent on what is taken up."""

    def record(self, claim: str, value: Any, *, arm: str = "", seed: int = 0, **about: Any) -> None:
        """One raw figure for a claim. A truth is recorded as 1 or 0. Raises OptionError for a claim of another function."""
        if claim not in self._allowed:
            raise OptionError(
                f"{self.check.id}: this function measures {', '.join(self._allowed)}, not {claim!r}. Name it in @measures."
            )
        value = value.item() if hasattr(value, "item") else value
        self.records.append(Record(claim=claim, arm=arm, seed=seed, value=float(value), about=about))

    def once(self, key: Sequence[Any], function: Callable[[], Any]) -> Any:
        """`function()`, or what it returned (JSON) before the check was interrupted."""
        name = json.dumps(list(key))
        if name not in self._kept:
            began = time.perf_counter()
            self._kept[name] = function()
            if self.work is not None:
                entry = {"key": name, "value": self._kept[name], "seconds": time.perf_counter() - began}
                with open(self._journal(), "a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
        return self._kept[name]

    def model(self, name: str, **options: Any) -> Any:
        """An embedded model on the CPU, where figures can be repeated."""
        from luthier.models.load import load

        return load(f"builtin:{name}", device="cpu", **options)

    def data(self, name: str) -> Any:
        """An embedded data set."""
        from luthier.data.load import load_data

        return load_data(f"builtin:{name}")

    def fit(self, model: Any, data: Any, method: Any, **settings: Any) -> Any:
        """`luthier.train.fit`, silent, without the test rows and with one evaluation: a check scores for itself."""
        from luthier.train.fit import fit

        settings = {"evaluate_every": 1_000_000, **settings}
        return fit(model, replace(data, test=None), method, progress=False, **settings)

    def shared(self, name: str) -> Path:
        """The folder of a real data set that is not shipped. Raises DataError where it is not at hand."""
        root = Path(os.environ.get(SHARED, "../shared/data"))
        if not (root / name).is_dir():
            raise DataError(
                f"{self.check.id} measures on {name}, which is not shipped and not in {root}. Set {SHARED} to the folder "
                "that holds it."
            )
        return root / name

    def compare(
        self,
        claim: str | Sequence[str],
        model: Any,
        data: Any,
        arms: Mapping[str, Any],
        *,
        seeds: Iterable[int] = (0, 1, 2),
        rates: Sequence[float] = RATES,
        metric: str | None = None,
        **settings: Any,
    ) -> dict[str, dict[int, float]]:
        """Record the test score of every arm at every seed, each at its own best rate.

        arms: name -> a method, or (method, settings of its own), or a function of the seed for a control that has no
        learning rate. Each method tries `rates` times its own rate with the first seed (`explored`), the best on validation is
        kept, and the test rows are scored once per seed. settings go to `luthier.train.fit`. With several claims the same figures are
        recorded for each. Returns {arm: {seed: score}}.
        """
        claims = [claim] if isinstance(claim, str) else list(claim)
        metric = metric or data.task.metric
        seeds = list(seeds)
        found: dict[str, dict[int, float]] = {}
        for name, arm in arms.items():
            if callable(arm) and not hasattr(arm, "phases"):
                found[name] = {s: float(self.once([claims[0], name, s], partial(arm, s))) for s in seeds}
                abouts: dict[str, Any] = {}
            else:
                method, own = arm if isinstance(arm, tuple) else (arm, {})
                tuned = _Arm(self, claims[0], name, model, data, method, metric, {**settings, **own})
                rate = tuned.best(rates, seeds[0])
                found[name] = {s: tuned.test(rate, s) for s in seeds}
                abouts = {"rate": rate}
            for s, score in found[name].items():
                self.say(f"{self.check.id} {claims[0]}: {name}, seed {s}: {metric} {score:.4f}")
                for c in claims:
                    self.record(c, score, arm=name, seed=s, **abouts)
        return found

    def best_rate(
        self,
        claim: str,
        name: str,
        model: Any,
        data: Any,
        method: Any,
        *,
        seed: int = 0,
        rates: Sequence[float] = RATES,
        metric: str | None = None,
        **settings: Any,
    ) -> float:
        """The learning rate of `rates` times the method's own that is best on validation; every trial is stored."""
        tuned = _Arm(self, claim, name, model, data, method, metric or data.task.metric, settings)
        return tuned.best(rates, seed)

    def best_of(
        self,
        claim: str,
        arm: str,
        score: Callable[[float], float],
        rate: float,
        *,
        rates: Sequence[float] = RATES,
        seed: int = 0,
        lowest: bool = False,
        called: str = "validation",
    ) -> float:
        """The learning rate with the highest `score(learning rate)` of `rates` times `rate` (`explored`); every trial is kept and stored.

        lowest: the score is a loss. called: what the trials call it.
        """

        def tried(factor: float) -> float:
            at = rate * factor
            found = float(self.once([claim, arm, called, factor, seed], partial(score, at)))
            self.say(f"{self.check.id} {claim}: {arm} at rate {at:.2g}: {called} {found:.4f}")
            self.trials.append({"claim": claim, "arm": arm, "rate": at, "seed": seed, called: found})
            return -found if lowest else found

        return rate * explored(rates, tried)

    def curve(
        self,
        claim: str,
        name: str,
        model: Any,
        data: Any,
        method: Any,
        *,
        every: int,
        seed: int,
        **settings: Any,
    ) -> list[tuple[int, dict[str, float]]]:
        """[(step, validation scores)] every so many steps of a fit; the test rows stay out of it."""
        lines = partial(self._log, model, data, method, seed=seed, evaluate_every=every, **settings)
        found = self.once(
            [claim, name, "curve", seed],
            lambda: [[line["step"], line["validation"]] for line in lines() if "validation" in line],
        )
        return [(step, scores) for step, scores in found]

    def losses(
        self,
        claim: str,
        model: Any,
        data: Any,
        arms: Mapping[str, Any],
        *,
        seeds: Sequence[int] = (0, 1, 2),
        rates: Sequence[float] = RATES,
        last: int = 20,
        **settings: Any,
    ) -> dict[str, dict[int, float]]:
        """Record the training loss of every arm at every seed, the mean of a fit's last steps, each at its own best rate.

        The rate is the one of `rates` times the method's own whose loss is lowest at the first seed (`explored`).
        """
        found: dict[str, dict[int, float]] = {}
        for name, method in arms.items():

            def loss(rate: float, seed: int = seeds[0], name: str = name, method: Any = method) -> float:
                def go() -> float:
                    lines = self._log(model, data, method, seed=seed, rate=rate, **settings)
                    values = [line["loss"] for line in lines if "loss" in line]
                    return float(sum(values[-last:]) / len(values[-last:]))

                return float(self.once([claim, name, "loss of a fit", rate, seed], go))

            best = self.best_of(
                claim,
                name,
                loss,
                float(method.rate),
                rates=rates,
                seed=seeds[0],
                lowest=True,
                called="loss",
            )
            found[name] = {s: loss(best, s) for s in seeds}
            for s, value in found[name].items():
                self.say(f"{self.check.id} {claim}: {name}, seed {s}: loss {value:.4f}")
                self.record(claim, value, arm=name, seed=s, rate=best)
        return found

    def _log(self, model: Any, data: Any, method: Any, **settings: Any) -> list[dict[str, Any]]:
        """The lines that a fit logs."""
        with tempfile.TemporaryDirectory() as out:
            self.fit(model, data, method, out=f"{out}/run", **settings)
            text = Path(out, "run", "log.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def _journal(self) -> Path:
        assert self.work is not None
        self.work.mkdir(parents=True, exist_ok=True)
        return self.work / f"{self.check.id}-{fingerprint(self.check)[:12]}.jsonl"

    def _recall(self) -> None:
        """Take up what an interrupted run of the same code had done; a last line that was cut off is done again."""
        if self.work is None or not self._journal().is_file():
            return
        for line in self._journal().read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            self._kept[entry["key"]] = entry["value"]
            self._before += entry["seconds"]


@dataclass
class _Arm:
    """One method on its way through the grid of rates and the seeds."""

    run: Run
    claim: str
    name: str
    model: Any
    data: Any
    method: Any
    metric: str
    settings: Mapping[str, Any]
    _fitted: dict[tuple[float, int], Any] = field(default_factory=dict)

    def best(self, rates: Sequence[float], seed: int) -> float:
        """The rate whose fit is best on validation."""

        def validated(rate: float) -> float:
            return float(self._fit(rate, seed).score(self.data.validation)[self.metric])

        own = float(self.method.rate)
        best = self.run.best_of(self.claim, self.name, validated, own, rates=rates, seed=seed)
        self._fitted = {k: v for k, v in self._fitted.items() if k[0] == best}
        return best

    def test(self, rate: float, seed: int) -> float:
        return float(
            self.run.once([self.claim, self.name, "test", rate, seed], lambda: self._test(rate, seed))
        )

    def _test(self, rate: float, seed: int) -> float:
        fitted = self._fit(rate, seed)
        self._fitted.pop((rate, seed), None)
        return float(fitted.score(self.data.test)[self.metric])

    def _fit(self, rate: float, seed: int) -> Any:
        if (rate, seed) not in self._fitted:
            of = None if rate == float(self.method.rate) else rate
            self._fitted[rate, seed] = self.run.fit(
                self.model, self.data, self.method, seed=seed, rate=of, **self.settings
            )
        return self._fitted[rate, seed]


def measure(
    made: Check,
    *,
    only: Iterable[str] = (),
    cheap: bool = False,
    work: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Result:
    """Run a check's functions and judge what they record.

    only: claims to measure (whole functions run); empty: all. cheap: only functions that take seconds. The result then
    holds only what was measured, and the claims left out are judged as not measured.
    """
    from luthier.compare.environment import machine, versions

    began = time.perf_counter()
    run = Run(made, work, say)
    run._recall()
    for part in chosen(made, only, cheap):
        say(f"{made.id}: {part.name.replace('_', ' ')}")
        run._allowed = part.claims
        part.function(run)
        silent = [c for c in part.claims if not any(r.claim == c for r in run.records)]
        if silent:
            raise OptionError(
                f"{made.id}: {part.name} recorded nothing for {', '.join(silent)}. Record a figure for each."
            )
    kept = Stored(
        format=FORMAT,
        id=made.id,
        records=tuple(run.records),
        trials=tuple(run.trials),
        seconds=round(run._before + time.perf_counter() - began, 1),
        digest=fingerprint(made),
        versions=versions(),
        machine=machine(None),
        date=datetime.date.today().isoformat(),
    )
    return Result(made, kept)


def chosen(made: Check, only: Iterable[str] = (), cheap: bool = False) -> list[Measure]:
    """The functions to run. Raises OptionError for a claim that the check does not make."""
    wanted = {made.claim(c).id for c in only}
    return [m for m in made.measured if (not wanted or wanted & set(m.claims)) and (m.cheap or not cheap)]
