"""To and from peft's folder: which of our parts is which of its types, and the one way through each direction.

A part joins by an entry in PARTS; a method joins by being made of such parts, whatever its targets, start and source are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.convert.folder import CONFIG, Folder, read_folder, write
from luthier.convert.heads import check_extra, head_tensors, read_extra, write_extra
from luthier.convert.parts import Imported, Piece
from luthier.errors import FileFormatError, LuthierError, ModelError, OptionError
from luthier.host.adaptation import Adaptation
from luthier.host.options import to_card

PARTS = {
    **dict.fromkeys(
        ("lora", "rslora", "lora_plus", "lora_pro", "pissa", "soma", "corda", "eva", "chain_of_lora", "dora"),
        "LORA",
    ),
    "vera": "VERA",
    "loha": "LOHA",
    "lokr": "LOKR",
    "oft": "OFT",
    "fourierft": "FOURIERFT",
    "randlora": "RANDLORA",
    "scaled_outputs": "IA3",
    "scaled_inputs": "IA3",
    **dict.fromkeys(("prompt_tuning", "dpt", "mpt", "residual_prompt", "spt", "xpe"), "PROMPT_TUNING"),
    "p_tuning_v2": "PREFIX_TUNING",
}
"""Registered name of a part -> peft's type. A subclass has a name of its own, and so does not slip in."""
KINDS = {
    "LORA": "low_rank",
    "IA3": "scaling",
    "PROMPT_TUNING": "prompts",
    "PREFIX_TUNING": "prefixes",
    "VERA": "vera",
    "LOHA": "loha",
    "LOKR": "lokr",
    "OFT": "oft",
    "FOURIERFT": "fourierft",
    "RANDLORA": "randlora",
}
"""peft's type -> module with `to_config(pieces, base)` and `from_folder(folder, base, drop)`."""
UNLIKE = {
    "boft": "peft's BOFT joins other runs than luthier's boft from its third factor on, uses one factor alone where its CUDA extension is not "
    "built, and trains a scale of each output. oft can be converted",
}
"""Name of a method that peft has too, with another formula: why it is refused. peft's type is the same in capitals."""
DROPPABLE = frozenset({"modules_to_save"})
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def to_peft(adaptation: Any, model: Any, folder: str | os.PathLike) -> list[str]:
    """Write `adaptation` (fitted or not, or a sum of LoRA) for `model` as a folder that peft's PeftModel.from_pretrained opens.

    The base keeps its outputs to 1e-5 there as here. Returns what the folder cannot say, one line each. Raises ModelError for
    what peft has no equal of, RunError where the folder holds something else.
    """
    adaptation = getattr(adaptation, "adaptation", adaptation)
    base: nn.Module = getattr(model, "base", model)
    terms = adaptation.terms if hasattr(adaptation, "terms") else [(1.0, adaptation)]
    pieces = [Piece(s, p) for s, a in terms for p in a.placed() if p.part is not a.head]
    kinds = {PARTS.get(p.part.name) for p in pieces if p.placed.sites}
    names = sorted({p.part.name for p in pieces})
    if unlike := next((n for n in names if n in UNLIKE), None):
        raise ModelError(f"{unlike} can't be converted: {UNLIKE[unlike]}. Or export it as a merged model.")
    if len(kinds) != 1 or None in kinds or any(len(a.members) for _, a in terms):
        raise ModelError(
            f"{', '.join(names)} can't be one adapter of peft. It takes {', '.join(PARTS)}, one kind at a time; save() keeps everything."
        )
    kind = kinds.pop()
    assert kind is not None
    config, tensors = import_module(f"luthier.convert.{KINDS[kind]}").to_config(
        [p for p in pieces if p.placed.sites], base
    )
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise ModelError(f"The tensor {name} holds NaN or infinite values: there is nothing to export.")
    config = {**config, "task_type": task_type(base, kind), "inference_mode": True, "base_model_name_or_path": hub_name(model)}  # fmt: skip
    more, notes = _extra(terms, model)
    write(folder, config, tensors, more, readme(config, names, notes))
    return notes


def from_peft(folder: str | os.PathLike, model: Any, *, drop: Collection[str] = ()) -> Adaptation:
    """The adaptation in a folder that peft (or `to_peft`) wrote, for `model`; what was left out is in `about["notes"]`.

    drop: keys of adapter_config.json to leave out although they change outputs; only modules_to_save. Raises FileFormatError
    for damaged or hostile folders, another base, and everything that cannot be carried exactly. The base is untouched.
    """
    base: nn.Module = getattr(model, "base", model)
    if odd := sorted(set(drop) - DROPPABLE):
        raise OptionError(f"{odd[0]!r} can't be dropped. What can: {', '.join(sorted(DROPPABLE))}.")
    found = read_folder(folder)
    if (unlike := found.kind.lower()) in UNLIKE:
        raise FileFormatError(
            f"{CONFIG}: peft_type={found.kind!r} can't be converted: {UNLIKE[unlike]}. Or merge it in peft and load the merged model."
        )
    if found.kind not in KINDS:
        raise FileFormatError(
            f"{CONFIG}: peft_type={found.kind[:40]!r} can't be converted; {', '.join(KINDS)} can. Merge it in peft and load the merged model."
        )
    if "modules_to_save" in drop:
        found = found.without(found.config.get("modules_to_save"))
    read = import_module(f"luthier.convert.{KINDS[found.kind]}").from_folder(found, base, frozenset(drop))
    fingerprint = getattr(model, "fingerprint", None) or _fingerprint(base)
    extra, head = read_extra(found.path, fingerprint)
    check_extra(extra)
    made = _adaptation(found, read, extra, head, base)
    dropped = [f"{k} is left out" for k in sorted(drop) if found.config.get(k)]
    made.about = {**made.about, "from": f"peft {found.kind}", "notes": [*read.notes, *dropped]}
    name = getattr(model, "name", None)
    if name is not None:
        made.about["base"] = name
    if made.task is None and getattr(model, "generates", False):
        _writes(made, model)
    return made


def _adaptation(
    found: Folder, read: Imported, extra: dict[str, Any], head: dict[str, Tensor], base: nn.Module
) -> Adaptation:
    """Built from a card, as every saved adaptation is, and filled strictly."""
    names = [[s.name for s in here] for here in read.sites]
    card = {
        "method": to_card(read.method), "head": extra.get("head"), "seed": 0, "layouts": {},
        "sites": [*names, ["output"]] if extra.get("head") is not None else names,
        "task": extra.get("task"), "preprocess": extra.get("preprocess"), "about": extra.get("about"),
    }  # fmt: skip
    if extra.get("head") is not None:
        from luthier.methods import load_all

        load_all()
    stored = (found.path / "adapter_model.safetensors").stat().st_size + sum(
        v.numel() * 4 for v in head.values()
    )
    widest = max(4 * 2**20, 64 * stored)  # halves become singles, and short ranks are filled
    try:
        made = Adaptation.from_card(card, base, widest)
        values = {
            f"parts.{i}.at.{made.placed()[i].at[_key(site)].key}.values.{k}": v  # type: ignore[union-attr]
            for (i, site, k), v in read.fill(found.tensors()).items()
        }
        values |= {f"parts.{len(names)}.at.output.values.{k}": v for k, v in head.items()}
        made.load_state(
            {k: v.to(made.state()[k].device) if k in made.state() else v for k, v in values.items()}
        )
    except FileFormatError:
        raise
    except (
        LuthierError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RuntimeError,
    ) as error:
        raise FileFormatError(
            f"The folder does not describe an adaptation of this model: {(str(error).splitlines() or [type(error).__name__])[0][:200]}"
        ) from None
    return made


def _key(site: str) -> str:
    from luthier.host.placed import site_key

    return site_key(site)


def _writes(adaptation: Adaptation, model: Any) -> None:
    """An adapter of a model that writes text is ready to write: peft's layout names no task."""
    from luthier.data.task import Task

    task = Task(kind="text2text", modality="text", input="input", label="target")
    adaptation.task = task.model_dump(mode="json")
    pre = getattr(model, "preprocess", None)
    adaptation.preprocess = None if pre is None else pre.settings.model_dump(mode="json")


def _extra(terms: Any, model: Any) -> tuple[dict[str, bytes], list[str]]:
    with_head = [(s, a) for s, a in terms if a.head is not None]
    if len(with_head) > 1 or any(s != 1.0 for s, _ in with_head):
        raise ModelError("The heads of a sum can't be exported. Export each adaptation on its own.")
    source = with_head[0][1] if with_head else next((a for _, a in terms if a.task is not None), terms[0][1])
    files = write_extra(
        source, getattr(model, "fingerprint", None) or _fingerprint(getattr(model, "base", model))
    )
    if not with_head:
        return files, []
    shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in head_tensors(source).items())
    pooling = getattr(source.head, "pooling", None)
    kind = "linear" if shapes else source.head.name
    how = f"{kind} on {pooling} pooling of the hidden states" if pooling else source.head.name
    return files, [
        f"peft adapts the body only; the output head ({how}; {shapes or 'no tensors'}) is in luthier_head.safetensors, which peft does not read"
    ]


def _fingerprint(base: nn.Module) -> str:
    from luthier.models.model import fingerprint

    return fingerprint(base)


def task_type(base: nn.Module, kind: str) -> str | None:
    """The class that peft wraps around the base. LoRA and (IA)3 of an encoder-decoder need none (and peft 0.21's asks for a
    function that transformers 5 no longer has)."""
    from luthier.models.architecture import generates, kind_of

    what = kind_of(base)
    if what == "module":
        if kind in ("PROMPT_TUNING", "PREFIX_TUNING"):
            raise ModelError(
                "peft takes prompts and prefixes for models of Transformers only. Use LoRA there."
            )
        return None
    if what == "encoder-decoder":
        return "SEQ_2_SEQ_LM" if kind in ("PROMPT_TUNING", "PREFIX_TUNING") else None
    return "CAUSAL_LM" if generates(base) else "FEATURE_EXTRACTION"


def hub_name(model: Any) -> str | None:
    """The base's name where it is one on a hub; a path of this machine is nobody's business."""
    name = getattr(model, "name", None) or ""
    return name if HUB_NAME.fullmatch(name) and not Path(name).exists() else None


def readme(config: dict[str, Any], names: Collection[str], notes: Collection[str]) -> str:
    """What the folder is, in words."""
    lines = [
        "---", "library_name: peft", "---", "", "# An adapter exported by Luthier", "",
        f"- methods: {', '.join(names)}", f"- peft_type: {config['peft_type']}", *(f"- {n}" for n in notes), "",
        "Open it with `peft.PeftModel.from_pretrained(base, FOLDER)`, or with `luthier convert --from peft`.",
        "Like any trained weights, an adapter can carry a backdoor: use those whose origin you trust.", "",
    ]  # fmt: skip
    return "\n".join(lines)
