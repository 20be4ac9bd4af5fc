"""What a check claims, and whether the raw figures bear it out. No torch: `luthier papers` judges stored figures with it.

A claim has a threshold and judges *records*, one raw figure each: {"claim", "arm", "seed", "value"}. Nothing that was
measured is summed up before it is stored, so that whether a claim holds can always be worked out again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any

from luthier.errors import OptionError

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t at 97.5 %, for 1 to 10 degrees of freedom."""


@dataclass(frozen=True)
class Verdict:
    """One claim, judged. figure: None where nothing was recorded. low, high: 95 %, of differences between arms only."""

    figure: float | None
    threshold: str
    holds: bool
    low: float | None = None
    high: float | None = None
    arms: Mapping[str, float] | None = None
    """The mean of every arm that was recorded for a comparison, controls included."""

    @property
    def clear(self) -> bool:
        """Whether the interval of a difference leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Claim:
    """A falsifiable statement under a name; what kind of threshold it has is the subclass."""

    id: str
    statement: str

    @property
    def threshold(self) -> str:
        raise NotImplementedError

    def judge(self, records: Iterable[Mapping[str, Any]]) -> Verdict:
        """The verdict on the records of this claim; those of others are passed over."""
        return self._judge([r for r in records if r["claim"] == self.id])

    def _judge(self, own: list[Mapping[str, Any]]) -> Verdict:
        raise NotImplementedError


def _values(own: list[Mapping[str, Any]]) -> list[float]:
    return [float(r["value"]) for r in own]


@dataclass(frozen=True)
class AtMost(Claim):
    """Every recorded value is at most `limit`; the figure is the largest."""

    limit: float

    @property
    def threshold(self) -> str:
        return f"at most {self.limit:g}"

    def _judge(self, own: list[Mapping[str, Any]]) -> Verdict:
        values = _values(own)
        worst = max(values, key=lambda v: (math.isnan(v), v), default=None)
        return Verdict(worst, self.threshold, worst is not None and worst <= self.limit)


@dataclass(frozen=True)
class AtLeast(Claim):
    """Every recorded value is at least `limit`; the figure is the smallest."""

    limit: float

    @property
    def threshold(self) -> str:
        return f"at least {self.limit:g}"

    def _judge(self, own: list[Mapping[str, Any]]) -> Verdict:
        values = _values(own)
        worst = min(values, key=lambda v: (not math.isnan(v), v), default=None)
        return Verdict(worst, self.threshold, worst is not None and worst >= self.limit)


@dataclass(frozen=True)
class Equals(Claim):
    """Every recorded value is exactly `value`: counts, and things that are true (1) or not (0)."""

    value: float = 1.0

    @property
    def threshold(self) -> str:
        return f"exactly {self.value:g}"

    def _judge(self, own: list[Mapping[str, Any]]) -> Verdict:
        values = _values(own)
        wrong = next((v for v in values if v != self.value), values[0] if values else None)
        return Verdict(wrong, self.threshold, bool(values) and wrong == self.value)


@dataclass(frozen=True)
class Beats(Claim):
    """`arm` is above `over` by more than `by`: the mean of differences, paired by seed (t-interval over seeds).

    ties: a mean difference of exactly `by` is enough ("at least as good"). A negative `by` says "within".
    seeds: so many pairs are needed. Other arms that were recorded are shown, not judged.
    """

    arm: str
    over: str
    by: float = 0.0
    ties: bool = False
    seeds: int = 3

    @property
    def threshold(self) -> str:
        return f"{self.arm} - {self.over} {'at least' if self.ties else 'above'} {self.by:g}"

    def _judge(self, own: list[Mapping[str, Any]]) -> Verdict:
        of: dict[str, dict[int, float]] = {}
        for r in own:
            if r["seed"] in of.setdefault(r["arm"], {}):
                raise OptionError(
                    f"The claim {self.id!r} has two figures of {r['arm']!r} at seed {r['seed']}. Record each once."
                )
            of[r["arm"]][r["seed"]] = float(r["value"])
        arms = {name: fmean(values.values()) for name, values in of.items()}
        mine, others = of.get(self.arm, {}), of.get(self.over, {})
        pairs = sorted(mine.keys() & others.keys())
        if not pairs:
            return Verdict(None, self.threshold, False, arms=arms)
        gaps = [mine[s] - others[s] for s in pairs]
        mean = fmean(gaps)
        low, high = interval(gaps)
        enough = len(pairs) >= self.seeds and mine.keys() == others.keys()
        return Verdict(mean, self.threshold, enough and self._above(gaps), low, high, arms)

    def _above(self, gaps: list[float]) -> bool:
        mean = fmean(gaps)
        return mean > self.by or (self.ties and math.isclose(mean, self.by, abs_tol=1e-12))


@dataclass(frozen=True)
class WithinError(Beats):
    """`arm` is at least `over` plus `by`, less `errors` standard errors of the differences, paired by seed.

    A negative `errors` says "above by at least so many".
    """

    errors: float = 1.0

    @property
    def threshold(self) -> str:
        return f"{self.arm} - {self.over} at least {self.by:g} - {self.errors:g} standard errors"

    def _above(self, gaps: list[float]) -> bool:
        if len(gaps) < 2 or not all(map(math.isfinite, gaps)):
            return False
        return fmean(gaps) >= self.by - self.errors * stdev(gaps) / math.sqrt(len(gaps)) - 1e-12


@dataclass(frozen=True)
class Reported(Claim):
    """Figures that are shown and not judged: it holds once something was recorded. The figure is the mean."""

    @property
    def threshold(self) -> str:
        return "reported, not judged"

    def _judge(self, own: list[Mapping[str, Any]]) -> Verdict:
        of: dict[str, list[float]] = {}
        for r in own:
            of.setdefault(r["arm"], []).append(float(r["value"]))
        arms = {name: fmean(values) for name, values in of.items()}
        mean = fmean(_values(own)) if own else None
        return Verdict(mean, self.threshold, mean is not None and math.isfinite(mean), arms=arms)


def interval(values: list[float]) -> tuple[float | None, float | None]:
    """The 95 % interval of a mean by Student's t; (None, None) for fewer than two values, or for NaN."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None, None
    n = len(values)
    half = _t_95(n - 1) * stdev(values) / math.sqrt(n)
    return fmean(values) - half, fmean(values) + half


def _t_95(freedom: int) -> float:
    """Student's t at 97.5 %: from the table, then by two terms of its expansion around the normal quantile."""
    if freedom <= len(T_95):
        return T_95[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
