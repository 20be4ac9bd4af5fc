"""Adaptation folders: card.json, tensors.safetensors, README.md. Loading is strict, and nothing is changed before all is checked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import luthier
from luthier.errors import FileFormatError, LuthierError, ModelError, RunError
from luthier.host.adaptation import Adaptation
from luthier.host.combination import Combination

FORMAT = 1
CARD, TENSORS, README = "card.json", "tensors.safetensors", "README.md"
LARGEST_CARD = 16 * 2**20
KEYS = {"format", "luthier", "torch", "kind", "base", "terms", "tensors"}


def save(
    adaptation: Adaptation | Combination, folder: str | os.PathLike, fingerprint: str, *, refer: bool = False
) -> Path:
    """Write a folder, whole or not at all. fingerprint: the base's. refer: members are named by content hash, not stored.

    Raises RunError where the disk is full or the folder holds something else.
    """
    from safetensors.torch import save as to_bytes

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / CARD).is_file())):
        raise RunError(
            f"{folder.name!r} exists and is not an adaptation. Choose another folder, or remove it."
        )
    terms = adaptation.terms if isinstance(adaptation, Combination) else [(1.0, adaptation)]
    cards: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for i, (scale, term) in enumerate(terms):
        card, state = term.card(), term.state()
        if refer:
            card["members"] = {k: {"ref": m.hash()} for k, m in term.members.items()}  # type: ignore[operator]
            state = {k: v for k, v in state.items() if not k.startswith("members.")}
        cards.append({"scale": scale, "card": card})
        tensors |= {f"{i}.{k}": v.detach().cpu().contiguous() for k, v in state.items()}
    data = to_bytes(tensors)
    card = {
        "format": FORMAT,
        "luthier": luthier.__version__,
        "torch": torch.__version__.partition("+")[0],
        "kind": "combination" if isinstance(adaptation, Combination) else "adaptation",
        "base": fingerprint,
        "terms": cards,
        "tensors": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)},
    }
    files = {
        TENSORS: data,
        CARD: json.dumps(card, indent=1, sort_keys=True).encode(),
        README: readme(adaptation, card).encode(),
    }
    write_folder(folder, files)
    return folder


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write aside, sync, rename: a crash leaves the old folder or the new one. RunError where the disk is full."""
    aside = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        os.chmod(aside, 0o755)
        for name, data in files.items():
            with open(aside / name, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
        old = None
        if folder.exists():
            old = aside.with_name(aside.name + ".old")
            os.rename(folder, old)
        os.rename(aside, folder)
        if old is not None:
            shutil.rmtree(old)
    except OSError as error:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        raise RunError(
            f"{folder.name!r} could not be written: {error.strerror}. Free some space, or choose another folder."
        ) from None


def load(
    folder: str | os.PathLike, base: nn.Module, fingerprint: str, library: Sequence[Adaptation] = ()
) -> Any:
    """The adaptation (or combination) in a folder, for this base. library: adaptations that a file may refer to.

    Raises FileFormatError for anything missing, extra, mis-shaped, non-finite, out of range, truncated, of another base or
    of a later format; the base is untouched.
    """
    card = read_card(folder)
    if card["base"] != fingerprint:
        name = _about(card).get("base") or "another model"
        raise FileFormatError(
            f"This adaptation belongs to another base ({str(name)[:80]}, fingerprint {str(card['base'])[:12]}), not to this one "
            f"({fingerprint[:12]}). Load the model that it was trained on."
        )
    tensors = read_tensors(folder, card)
    have = {a.hash(): a for a in library}
    terms = []
    for i, term in enumerate(card["terms"]):
        own = {k.removeprefix(f"{i}."): v for k, v in tensors.items() if k.startswith(f"{i}.")}
        terms.append((float(term["scale"]), _term(term["card"], own, base, card["tensors"]["bytes"], have)))
    if extra := [k for k in tensors if k.partition(".")[0] not in {str(i) for i in range(len(terms))}]:
        raise FileFormatError(f"The file holds tensors that the card does not know, first {extra[0][:80]!r}.")
    return Combination(terms) if card["kind"] == "combination" else terms[0][1]


def _term(
    card: dict, tensors: dict[str, Tensor], base: nn.Module, size: int, have: dict[str, Adaptation]
) -> Adaptation:
    members = card.get("members") or {}
    if not isinstance(members, dict):
        raise FileFormatError("The card's members are malformed.")
    card = dict(card)
    for name, member in members.items():
        if isinstance(member, dict) and "ref" in member:
            found = have.get(member["ref"])
            if found is None:
                raise FileFormatError(
                    f"The member {name[:60]!r} is the adaptation {str(member['ref'])[:12]}, which was not given. Load it first (library=)."
                )
            card["members"] = {**card["members"], name: found.card()}
            tensors |= {f"members.{name}.{k}": v for k, v in found.state().items()}
            size += sum(v.numel() * v.element_size() for v in found.state().values())
    try:
        adaptation = Adaptation.from_card(card, base, size)
        adaptation.load_state(tensors)
    except FileFormatError:
        raise
    except (
        LuthierError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        OverflowError,
        RuntimeError,
        RecursionError,
    ) as error:
        refused = FileFormatError(
            f"The card does not describe an adaptation of this model: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}"
        )
        refused.reason = getattr(error, "reason", None)
        raise refused from None
    return adaptation


def read_card(folder: str | os.PathLike) -> dict[str, Any]:
    """A card, checked as far as it can be without a model."""
    from luthier.models.json_files import read_object

    folder = Path(folder)
    if not (folder / CARD).is_file():
        raise FileFormatError(
            f"{folder.name!r} is no adaptation: it has no {CARD}. Give the folder that fit wrote."
        )
    try:
        card = read_object(folder / CARD, LARGEST_CARD)
    except ModelError as error:
        raise FileFormatError(str(error)) from None
    version = card.get("format")
    if not isinstance(version, int) or isinstance(version, bool):
        raise FileFormatError(f"{CARD} has no format number: it is not an adaptation's card.")
    if version > FORMAT:
        raise FileFormatError(
            f"This adaptation has format {version}; this version of luthier reads up to {FORMAT}. Update luthier."
        )
    if version < 1 or set(card) != KEYS:
        raise FileFormatError(
            f"{CARD} has missing or unknown keys: {', '.join(sorted(map(str, set(card) ^ KEYS)))[:200]}."
        )
    held = card["tensors"]
    terms = card["terms"]
    sound = (
        isinstance(held, dict) and set(held) == {"sha256", "bytes"} and isinstance(held["sha256"], str)
        and isinstance(held["bytes"], int) and isinstance(card["base"], str) and card["kind"] in ("adaptation", "combination")
        and isinstance(terms, list) and 0 < len(terms) <= 256 and (card["kind"] == "combination" or len(terms) == 1)
        and all(isinstance(t, dict) and set(t) == {"scale", "card"} and isinstance(t["scale"], (int, float)) and isinstance(t["card"], dict) for t in terms)
        and all(abs(float(t["scale"])) < 1e6 for t in terms)
    )  # fmt: skip
    if not sound:
        raise FileFormatError(f"{CARD} is malformed. Fetch the adaptation again.")
    return card


def read_tensors(folder: str | os.PathLike, card: dict[str, Any]) -> dict[str, Tensor]:
    """All tensors, read whole into memory of their own, with the digest that the card names."""
    from luthier.models.weights import read

    path = Path(folder) / TENSORS
    try:
        if path.stat().st_size != card["tensors"]["bytes"]:
            raise FileFormatError(
                f"{TENSORS} has {path.stat().st_size} bytes, its card says {card['tensors']['bytes']}: it is truncated or was changed."
            )
        return read(path, card["tensors"]["sha256"])
    except OSError as error:
        raise FileFormatError(
            f"{TENSORS} can't be read: {error.strerror}. Fetch the adaptation again."
        ) from None
    except ModelError as error:
        raise FileFormatError(str(error)) from None


def _about(card: dict[str, Any]) -> dict[str, Any]:
    about = card["terms"][0]["card"].get("about")
    return about if isinstance(about, dict) else {}


def readme(adaptation: Adaptation | Combination, card: dict[str, Any]) -> str:
    """The model card, in words: what it is, how it was made, what it must not be taken for."""
    about, task = _about(card), adaptation.task or {}
    terms = card["terms"]
    lines = ["# An adaptation made with Luthier", ""]
    lines.append(
        "- methods: "
        + ", ".join(
            f"{t['scale']:g} x {t['card']['method']['is']}" if t["scale"] != 1 else t["card"]["method"]["is"]
            for t in terms
        )
    )
    lines.append(
        f"- base: {_plain(about.get('base', 'see the fingerprint'))} (fingerprint {card['base'][:16]})"
    )
    if task:
        lines.append(
            f"- task: {_plain(task.get('kind'))}, labels: {', '.join(_plain(x) for x in task.get('labels', [])) or 'none'}"
        )
    for key in ("data", "rows", "seed", "steps"):
        if key in about:
            lines.append(f"- {key}: {_plain(about[key])}")
    for part, values in (("validation", about.get("validation")), ("test", about.get("test"))):
        if isinstance(values, dict) and values:
            lines.append(
                f"- {part}: "
                + ", ".join(f"{_plain(k)} {v:.4f}" for k, v in values.items() if isinstance(v, (int, float)))
            )
    lines += [
        "",
        "Options:",
        "",
        "```json",
        json.dumps([t["card"]["method"] for t in terms], indent=1),
        "```",
        "",
    ]
    lines += [
        "A fingerprint tells which base this belongs to; it is not a signature. Like any trained weights, an adaptation can carry a",
        "backdoor: use those whose origin you trust.",
        "",
    ]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    """What data says, without markup or control characters."""
    text = "".join(c if c.isprintable() else " " for c in str(value))[:200]
    for mark in "\\`*_{}[]<>()#|!":
        text = text.replace(mark, "\\" + mark)
    return text
