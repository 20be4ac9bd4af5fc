"""What peft's layout has no place for: the task, the preprocessing and the output head, in files of our own beside it.

luthier.json holds what a card holds of them, luthier_head.safetensors the head's tensors. peft reads neither. A head is a linear
map of pooled hidden states; peft's SEQ_CLS saves modules of a classification model of its own (a pooler with tanh, a dropout),
which is another function.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from luthier.convert.folder import EXTRA, EXTRA_TENSORS, LARGEST_CONFIG
from luthier.errors import FileFormatError, ModelError

KEYS = {"format", "base", "head", "task", "preprocess", "about"}


def write_extra(adaptation: Any, fingerprint: str) -> dict[str, bytes]:
    """The files' bytes; none where there is nothing to say. adaptation: one with a head or a task, if any."""
    from safetensors.torch import save

    card, tensors = adaptation.card(), head_tensors(adaptation)
    if card["task"] is None and card["head"] is None:
        return {}
    about = {
        "format": 1,
        "base": fingerprint,
        **{k: card[k] for k in ("head", "task", "preprocess", "about")},
    }
    about["about"] = {k: v for k, v in card["about"].items() if k != "base"}  # may be a path of this machine
    files = {EXTRA: json.dumps(about, indent=1, sort_keys=True).encode()}
    if card["head"] is not None:  # one without tensors (embedding) is a file of none
        files[EXTRA_TENSORS] = save({k: v.detach().float().cpu().contiguous() for k, v in tensors.items()})
    return files


def head_tensors(adaptation: Any) -> dict[str, Tensor]:
    """The head's tensors by name; none without a head."""
    placed = next(
        (p for p in adaptation.placed() if adaptation.head is not None and p.part is adaptation.head), None
    )
    return {} if placed is None else dict(placed.ats()[0].values)


def read_extra(folder: Path, fingerprint: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a folder says of head and task, with the head's tensors; empty where it says nothing.

    FileFormatError for damaged files and for another base.
    """
    from luthier.models.json_files import read_object
    from luthier.models.weights import read

    if not (folder / EXTRA).is_file():
        if (folder / EXTRA_TENSORS).exists():
            raise FileFormatError(f"{EXTRA_TENSORS} stands without {EXTRA}. Export the adaptation again.")
        return {}, {}
    try:
        found = read_object(folder / EXTRA, LARGEST_CONFIG)
        if set(found) != KEYS or found["format"] != 1 or not isinstance(found["about"], dict):
            raise FileFormatError(
                f"{EXTRA} has missing or unknown keys, or another format. Remove it to import the body alone."
            )
        if found["base"] != fingerprint:
            raise FileFormatError(
                f"This adapter belongs to another base (fingerprint {str(found['base'])[:12]}), not to this one ({fingerprint[:12]}). Load the model that it was trained on."
            )
        if found["head"] is None and (folder / EXTRA_TENSORS).exists():
            raise FileFormatError(f"{EXTRA} names no head, but {EXTRA_TENSORS} holds one. Export it again.")
        tensors = read(folder / EXTRA_TENSORS) if found["head"] is not None else {}
    except ModelError as error:
        raise FileFormatError(str(error)) from None
    return found, tensors


def check_extra(extra: Mapping[str, Any]) -> None:
    """The task of a folder is one. FileFormatError otherwise."""
    from luthier.data.task import Task
    from luthier.errors import DataError

    if extra.get("task") is not None:
        try:
            Task.from_card(extra["task"])
        except DataError as error:
            raise FileFormatError(f"{EXTRA}: {error}") from None
