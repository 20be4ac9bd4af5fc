"""An arm of a comparison: a method with its options, or a baseline, under a label and a name that is safe in
paths.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.errors import LuthierError, OptionError

BASELINES = {
    "majority": "Majority",
    "tfidf": "TF-IDF + linear",
    "pixels": "Raw values + linear",
    "word": "Each word's most frequent tag",
    "probe": "Linear probe",
    "frozen": "Frozen model",
}
"""Every baseline by name, with its label; `luthier.compare.baselines` says which fit which data."""


@dataclass(frozen=True)
class Arm:
    """One line of a leaderboard."""

    name: str
    """Unique, of letters, digits, dots, dashes and underscores: the name of its folders."""
    label: str
    kind: str = "method"
    method: Any = None
    """The method instance, or None for a baseline."""

    def card(self) -> Any:
        from luthier.host.options import to_card

        return None if self.method is None else to_card(self.method)


def split_methods(text: str) -> list[str]:
    """`lora,lora:rank=4,alpha=8,prefix` -> ["lora", "lora:rank=4,alpha=8", "prefix"]: a piece key=value stays
    with its arm.
    """
    arms: list[str] = []
    for piece in text.split(","):
        head = piece.partition("=")[0]
        if "=" in piece and ":" not in head and arms and ":" in arms[-1]:
            arms[-1] += "," + piece.strip()
        elif not piece.strip():
            raise OptionError(
                f"The list of methods {text!r} has an empty entry. Write names joined by commas: lora,bitfit."
            )
        else:
            arms.append(piece.strip())
    return arms


def parse_arm(asked: Any) -> Arm:
    """An arm from `"lora"`, `"lora:rank=4,alpha=8"` or a method instance; unknown names and options raise
    OptionError.
    """
    from luthier.host.options import make, to_card
    from luthier.host.part import Part

    if isinstance(asked, Part):
        card = {k: v for k, v in to_card(asked).items() if k != "is"}
        default = to_card(make(type(asked), {}))
        changed = {k: v for k, v in card.items() if v != default.get(k)}
        options = ",".join(f"{k}={v['is'] if isinstance(v, dict) else v}" for k, v in changed.items())
        label = f"{asked.name}:{options}" if options else asked.name
        return Arm(safe_name(label), label, method=asked)
    if not isinstance(asked, str):
        raise OptionError(
            "A method is a name such as 'lora' or an instance such as lt.methods.LoRA(rank=4), not "
            f"{type(asked).__name__}."
        )
    name, colon, options = asked.strip().partition(":")
    settings: dict[str, str] = {}
    for piece in options.split(",") if colon else []:
        key, equals, value = (x.strip() for x in piece.partition("="))
        if not (key and equals and value):
            raise OptionError(
                f"The arm {asked!r} has {piece!r} where an option belongs. Write it as lora:rank=4,alpha=8."
            )
        if key in settings:
            raise OptionError(f"The arm {asked!r} names {key} twice. Keep one.")
        settings[key] = value
    method = make(method_class(name.strip()), settings)
    label = name.strip() + (":" + ",".join(f"{k}={v}" for k, v in settings.items()) if settings else "")
    return Arm(safe_name(label), label, method=method)


def parse_arms(asked: str | Iterable[Any]) -> list[Arm]:
    """All arms of a comparison, in the order given; none, or two that are the same, raise OptionError."""
    pieces: Sequence[Any] = split_methods(asked) if isinstance(asked, str) else list(asked)
    if not pieces:
        raise OptionError("A comparison needs at least one method. See: luthier methods")
    arms = [parse_arm(x) for x in pieces]
    seen: dict[str, str] = {}
    for arm in arms:
        card = repr(arm.card())
        if card in seen:
            raise OptionError(
                f"The arms {seen[card]!r} and {arm.label!r} are the same method with the same options. Keep "
                "one."
            )
        seen[card] = arm.label
    return arms


def baseline_arms(names: Iterable[str]) -> list[Arm]:
    return [Arm(name, BASELINES[name], kind="baseline") for name in names]


def safe_name(label: str) -> str:
    """A folder name for a label: unsafe characters become dashes, then a short digest keeps names apart."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.")[:60]
    if plain == label and plain not in BASELINES:
        return plain
    return f"{plain or 'arm'}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"


def count_trained(method: Any, model: Any) -> int | None:
    """Parameters that a method trains on a model, without a head; None where that takes data (members).

    A start that shares ranks out over sites may train a few more or fewer than with equal ranks, which are counted.
    """
    from luthier.host.sizing import count

    try:
        return count(method, model.base)
    except LuthierError:
        return None


def method_class(name: str) -> type:
    """The method called `name`: shipped, or registered by the user; OptionError lists what there is."""
    from luthier import methods

    if hasattr(methods, "get"):  # finds a shipped method's file through the index
        return methods.get(name)
    from luthier.host.options import look_up
    from luthier.host.part import Part

    return look_up(name, Part, "method")
