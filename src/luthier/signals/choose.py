"""A signal by its name, with options behind it: "auto", "choices", "t_few unlikely=0", "contrastive temperature=0.1", "infoprompt representation=0.5 fade=1"."""

from __future__ import annotations

from luthier.errors import OptionError

SIGNALS: dict[str, tuple[str, ...]] = {
    "auto": (),
    "choices": (),
    "t_few": ("lm", "unlikely", "normalised"),
    "contrastive": ("temperature", "reverse"),
    "infoprompt": ("representation", "head", "bottleneck", "code", "negatives", "fade"),
}
"""Name -> the options that it takes."""


def parsed(signal: str) -> tuple[str, dict[str, str]]:
    """(name, {option: value}) of a signal as it was given. OptionError for an unknown name or option."""
    name, *pairs = signal.split() or [""]
    if name not in SIGNALS:
        raise OptionError(f"signal={signal!r}: choose one of {', '.join(SIGNALS)}.")
    given: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key not in SIGNALS[name] or not equals:
            known = ", ".join(f"{k}=..." for k in SIGNALS[name]) or "no options"
            raise OptionError(f"signal={signal!r}: {pair!r} is none of its options. {name} takes {known}.")
        given[key] = value
    return name, given


def numbers(signal: str) -> dict[str, float]:
    """The options of a signal whose options are numbers. OptionError for others."""
    _, given = parsed(signal)
    try:
        return {key: float(value) for key, value in given.items()}
    except ValueError:
        raise OptionError(f"signal={signal!r}: its options are numbers.") from None
