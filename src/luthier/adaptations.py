"""Opening a saved adaptation: whichever method made it, from its own folder or from the folder of its run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.errors import FileFormatError, RunError

ASK = "Give the folder that `luthier fit --out` wrote."
LARGEST_CARD = 64 * 2**20
"""Bytes: a larger card.json is not one of ours."""


def load_adaptation(folder: str | Path, model: Any) -> Any:
    """What `luthier.fit` returned, from the folder it was saved to, on its base `model`.

    An adaptation without a task (converted from another library) comes by itself: `with model.attached(it)`.
    Raises RunError for a folder without an adaptation, FileFormatError for a damaged one or another base.
    """
    from luthier.methods import load_all
    from luthier.train.fitted import load_fitted

    found = folder_of(folder)
    load_all()  # a card names its method, which must be registered before it is read
    return load_fitted(found.parent if found.parent == Path(folder) else found, model)


def folder_of(directory: str | Path) -> Path:
    """The adaptation's folder: `directory` itself, or the `adaptation/` of a run folder. Raises RunError."""
    given = Path(directory)
    for folder in (given, given / "adaptation"):
        if (folder / "card.json").is_file():
            return folder
    if not given.is_dir():
        raise RunError(f"There is no folder {directory}. {ASK}")
    if (given / "run.json").is_file():
        raise RunError(
            f"The run in {directory} has not finished: give its `luthier fit` command again to resume it."
        )
    cards = given.glob("*/**/adaptation/card.json")
    inside = sorted({str(card.parent.parent.relative_to(given)) for card in cards})
    hint = f"It holds runs: {', '.join(inside[:5])}" if inside else ASK
    raise RunError(f"{directory} holds no adaptation (no card.json, no adaptation/card.json). {hint}")


def base_named_in(folder: Path) -> str:
    """The base model that the card in `folder` names, if a card is reason enough to load it: an embedded one.

    A card may come from anywhere. What it names is therefore never a reason to read a local folder or to
    fetch something: the user says so. Raises FileFormatError, RunError.
    """
    path = folder / "card.json"
    try:
        if path.stat().st_size > LARGEST_CARD:
            raise FileFormatError(f"{path} is larger than any card that luthier writes.")
        card = json.loads(path.read_text(encoding="utf-8"))
        names = {term["card"]["about"].get("base", "") for term in card["terms"]}
        name = names.pop() if len(names) == 1 else ""
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        raise FileFormatError(f"{path} is not the card of an adaptation.") from None
    if isinstance(name, str) and name.startswith("builtin:"):
        return name
    named = f" (the card names {name[:80]!r})" if name and isinstance(name, str) else ""
    raise RunError(f"The base model of {folder} is not an embedded one{named}: say which it is with --model.")
