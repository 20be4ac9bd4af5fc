"""peft's folder (adapter_config.json, adapter_model.safetensors), read strictly; nothing in it is executed or fetched."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from luthier.errors import FileFormatError, ModelError, RunError

CONFIG, TENSORS, README = "adapter_config.json", "adapter_model.safetensors", "README.md"
EXTRA, EXTRA_TENSORS = "luthier.json", "luthier_head.safetensors"
"""What peft's layout has no place for (task, preprocessing, output head): files of our own, which peft does not read."""
LARGEST_CONFIG = 4 * 2**20
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
PREFIX = "base_model.model."

INERT = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision", "task_type",
    }
)  # fmt: skip
"""Keys that decide nothing here. A name of a base is never a reason to fetch it, a class is never looked up."""
FIXES = {
    "modules_to_save": "it holds whole modules of another head. Import the body alone with drop=['modules_to_save'] (--drop modules_to_save), and fit a head",
    "bias": "trained biases are not part of a low-rank update. Merge it in peft, or train with bias='none'",
    "use_cayley_neumann": "peft then makes its rotations by a truncated series, which luthier's oft does not. Train with use_cayley_neumann=False, or merge it in peft",
    "coft": "a rotation that is kept near the identity is not read. Merge it in peft, or train with coft=False",
    "block_share": "blocks that are shared are not read. Merge it in peft, or train with block_share=False",
    "rank_pattern": "ranks that differ between modules are read of LORA only. Merge it in peft",
    "alpha_pattern": "scalings that differ between modules are read of LORA only. Merge it in peft",
    "n_frequency_pattern": "layers with other numbers of coefficients are not read. Merge it in peft",
    "target_parameters": "updates of raw parameters are not read. Merge it in peft and load the merged model",
    "trainable_token_indices": "new embeddings of tokens are not read. Merge it in peft and load the merged model",
    "layer_replication": "it builds another base model. Replicate the layers of the base first",
    "init_lora_weights": "this start rewrites the base. Save it in peft with path_initial_model_for_weight_conversion, which makes a plain LoRA of it",
    "lora_bias": "a bias in B is not read. Merge it in peft and load the merged model",
}


class Folder(NamedTuple):
    """A folder as it was read; tensors are looked at by shape before any is allocated."""

    path: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    dropped: frozenset[str] = frozenset()
    """Tensors that the user said to leave out."""

    @property
    def kind(self) -> str:
        return self.config["peft_type"]

    def without(self, modules: Any) -> Folder:
        """The folder without the tensors of these modules."""
        if not isinstance(modules, list) or not all(isinstance(m, str) and m for m in modules):
            return self
        out = frozenset(k for k in self.shapes if any(f".{m}." in k for m in modules))
        return self._replace(shapes={k: s for k, s in self.shapes.items() if k not in out}, dropped=out)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors as float32, in memory of their own; FileFormatError for values that are not finite."""
        from luthier.models.weights import read

        try:
            found = read(self.path / TENSORS)
        except ModelError as error:
            raise FileFormatError(str(error)) from None
        found = {k: v for k, v in found.items() if k not in self.dropped}
        if {k: tuple(v.shape) for k, v in found.items()} != self.shapes:
            raise FileFormatError(f"{TENSORS} changed while it was read. Convert it again.")
        for name, value in found.items():
            if not torch.isfinite(value).all():
                raise FileFormatError(
                    f"The tensor {name[:120]!r} holds NaN or infinite values: the file is damaged or hostile."
                )
        return {k: v.float() for k, v in found.items()}


def read_folder(folder: str | os.PathLike) -> Folder:
    """The configuration and the shapes of the tensors. FileFormatError for a folder of another kind or a damaged one."""
    from luthier.models.json_files import read_object
    from luthier.models.weights import header

    path = Path(folder)
    if not path.is_dir():
        raise RunError(f"There is no folder {folder}. Give the folder that peft's save_pretrained wrote.")
    if not (path / CONFIG).is_file():
        raise FileFormatError(
            f"{path.name!r} is no peft adapter: it has no {CONFIG}. Give the folder that save_pretrained wrote."
        )
    if not (path / TENSORS).is_file():
        pickled = any(path.glob("*.bin")) or any(path.glob("*.pt"))
        why = (
            "its tensors are pickled, which can run code. Save it again in peft with safe_serialization=True"
            if pickled
            else f"it has no {TENSORS}. Fetch it again"
        )
        raise FileFormatError(f"{path.name!r} can't be read: {why}.")
    try:
        config = read_object(path / CONFIG, LARGEST_CONFIG)
        entries = header(path / TENSORS)
    except ModelError as error:
        raise FileFormatError(str(error)) from None
    kind = config.get("peft_type")
    if not isinstance(kind, str):
        raise FileFormatError(f"{CONFIG} has no peft_type. Save the adapter anew with peft.")
    for e in entries:
        if e.dtype not in FLOATS:
            raise FileFormatError(f"The tensor {e.name!r} is {e.dtype}, expected floating-point numbers.")
    return Folder(path, config, {e.name: e.shape for e in entries})


def check_keys(config: Mapping[str, Any], read: frozenset[str], drop: frozenset[str] = frozenset()) -> None:
    """Refuse every key that is set and that the conversion does not read. Unset ones (null, false, empty) change nothing."""
    for key, value in config.items():
        off = value is None or value is False or value in ({}, [], "") or (key == "bias" and value == "none")
        if off or key in INERT or key in read or key in drop:
            continue
        fix = FIXES.get(
            key, "this version of luthier does not know what it changes. Merge it in peft, or remove the key"
        )
        raise FileFormatError(
            f"{CONFIG}: {str(key)[:60]}={json.dumps(value)[:80]} can't be converted: {fix}."
        )


def number(config: Mapping[str, Any], key: str, default: Any = None, least: float = 0) -> float:
    """A finite number of the configuration."""
    value = config.get(key, default)
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value < 2**31
    if not sound:
        raise FileFormatError(f"{CONFIG}: {key}={json.dumps(value)[:60]} is no number of at least {least}.")
    return value  # type: ignore[return-value]


def write(folder: str | os.PathLike, config: Mapping[str, Any], tensors: Mapping[str, Tensor], more: Mapping[str, bytes], readme: str) -> Path:  # fmt: skip
    """Write peft's layout, whole or not at all. RunError where the folder holds something else, or the disk is full."""
    from safetensors.torch import save

    from luthier.host.files import write_folder

    path = Path(folder)
    if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not (path / CONFIG).is_file())):
        raise RunError(
            f"{path.name!r} exists and is not a peft adapter. Choose another folder, or remove it."
        )
    data = {k: v.detach().float().cpu().contiguous().clone() for k, v in tensors.items()}
    files = {
        TENSORS: save(data, metadata={"format": "pt"}),
        CONFIG: json.dumps(dict(config), indent=2, sort_keys=True).encode(),
        README: readme.encode(),
    }
    write_folder(path, {**files, **more})
    return path
