"""A budget: what every arm of a comparison may spend, parsed from
`params=1%,minutes=5,epochs=2,steps=200,rows=1500,memory=2GB`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from luthier.errors import OptionError
from luthier.host.options import did_you_mean

BYTES = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
COUNTS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*([A-Za-z%]*)")


@dataclass(frozen=True)
class Budget:
    """What one arm may spend. None: no limit. `params_share` is a share of the base's parameters, `params` a
    count.
    """

    params_share: float | None = None
    params: int | None = None
    minutes: float | None = None
    epochs: float | None = None
    steps: int | None = None
    rows: int | None = None
    memory: int | None = None  # bytes

    @classmethod
    def parse(cls, text: str | Budget | None) -> Budget:
        """The budget that `text` writes; unknown or repeated keys, zero and negative values raise
        OptionError.
        """
        if isinstance(text, Budget):
            return text
        found: dict[str, Any] = {}
        for piece in (text or "").split(","):
            if not piece.strip():
                if (text or "").strip():
                    raise OptionError(
                        f"The budget {text!r} has an empty entry. Write key=value pairs joined by commas."
                    )
                continue
            key, equals, value = (x.strip() for x in piece.partition("="))
            if key not in READERS:
                raise OptionError(
                    f"A budget has no {key!r}.{did_you_mean(key, READERS)} Its keys: {', '.join(READERS)}."
                )
            if not equals or not value:
                raise OptionError(f"The budget's {key} has no value. Write it as {key}={EXAMPLES[key]}.")
            name, number = READERS[key](key, value)
            if {name, *(("params", "params_share") if key == "params" else ())} & found.keys():
                raise OptionError(f"The budget names {key} twice. Keep one.")
            found[name] = number
        return cls(**found)

    def card(self) -> dict[str, Any]:
        """JSON: the limits that are set."""
        return {k: v for k, v in asdict(self).items() if v is not None}

    def __str__(self) -> str:
        said = self.card()
        shown = {
            "params_share": lambda v: f"params={v * 100:g}%",
            "memory": lambda v: f"memory={in_bytes(v)}",
        }
        return ",".join(
            shown.get(k, lambda v, k=k: f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}")(v)
            for k, v in said.items()
        )

    def parameters_allowed(self, base_parameters: int) -> int | None:
        """Most parameters (the head apart) that an arm may train on a base of this size."""
        return (
            self.params
            if self.params_share is None
            else math.floor(self.params_share * base_parameters + 1e-9)
        )

    def refuse_parameters(self, trained: int, base_parameters: int) -> None:
        """Raise OptionError when an arm trains more than the budget; trained: without the head."""
        allowed = self.parameters_allowed(base_parameters)
        if allowed is not None and trained > allowed:
            raise OptionError(
                f"trains {trained:,} parameters ({trained / max(base_parameters, 1):.2%} of the base), above "
                "the budget of "
                f"{allowed:,}. Choose smaller options or raise params."
            )

    def refuse_memory(self, needed: int | None, what: str = "needs") -> None:
        """Raise OptionError when an arm's peak memory, in bytes, is above the budget."""
        if self.memory is not None and needed is not None and needed > self.memory:
            raise OptionError(
                f"{what} {in_bytes(needed)} of memory, above the budget of {in_bytes(self.memory)}. "
                "Lower the batch size or raise memory."
            )

    def steps_in(self, seconds_spent: float, seconds_per_step: float, runs: int) -> int | None:
        """Steps of one run when `minutes` are shared equally by `runs` runs, after a pilot; None: no limit of
        time.
        """
        if self.minutes is None:
            return None
        left = self.minutes * 60 - seconds_spent
        return max(1, int(left / max(runs, 1) / max(seconds_per_step, 1e-6)))


def of_parameters(text: str | Budget) -> Budget:
    """A budget of parameters alone, as a fit and a search take it. Raises OptionError for other limits, and for none."""
    found = Budget.parse(text)
    if odd := [k for k in found.card() if k not in ("params", "params_share")]:
        raise OptionError(
            f"This budget is for parameters, not for {odd[0]}. Write params=0.5%; --epochs, --steps and --limit say the rest."
        )
    if not found.card():
        raise OptionError(f"The budget {text!r} says nothing of parameters. Write it as params=0.5%.")
    return found


def in_bytes(size: float) -> str:
    """Bytes for people: 1.5 MB (powers of ten)."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1000
    return f"{size:.3g} TB"


def _number(key: str, value: str, units: Mapping[str, float]) -> float:
    found = NUMBER.fullmatch(value)
    if found is None or found[2].upper() not in units:
        hint = "It must be above zero." if value.startswith("-") else f"Write it as {key}={EXAMPLES[key]}."
        raise OptionError(f"The budget's {key}={value!r} is not a value of {key}. {hint}")
    number = float(found[1]) * units[found[2].upper()]
    if not (0 < number < 1e18):
        raise OptionError(f"The budget's {key}={value!r} must be above zero and finite.")
    return number


def _count(key: str, value: str) -> tuple[str, int]:
    number = _number(key, value, COUNTS)
    if number != int(number):
        raise OptionError(f"The budget's {key}={value!r} must be a whole number.")
    return key, int(number)


def _params(key: str, value: str) -> tuple[str, float]:
    if not value.endswith("%"):
        return _count(key, value)
    share = _number(key, value, {"%": 0.01})
    if share > 1:
        raise OptionError(f"The budget's {key}={value!r} is above 100%.")
    return "params_share", share


def _memory(key: str, value: str) -> tuple[str, int]:
    return key, max(1, int(_number(key, value, BYTES)))


def _real(key: str, value: str) -> tuple[str, float]:
    return key, _number(key, value, {"": 1})


READERS = {
    "params": _params,
    "minutes": _real,
    "epochs": _real,
    "steps": _count,
    "rows": _count,
    "memory": _memory,
}
EXAMPLES = {"params": "1%", "minutes": "5", "epochs": "2", "steps": "200", "rows": "1500", "memory": "2GB"}
