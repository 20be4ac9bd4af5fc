"""Prompt tuning to and from peft's PROMPT_TUNING: rows in front of the embedded input, (length, width).

Both put the prompt in front, see it always, and count positions from its first token. With padding on the left and no
positions given, peft counts the padding too; luthier does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from luthier.convert.folder import CONFIG, Folder, check_keys, number
from luthier.convert.parts import Imported, Piece, one
from luthier.errors import FileFormatError, ModelError
from luthier.host.structure import structure_of

PROMPT = "prompt_embeddings"
READ = frozenset(
    {
        "num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers",
        "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
    }
)  # fmt: skip


def to_config(pieces: Sequence[Piece], base: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """peft's configuration and tensor of one prompt at the model's input."""
    structure = structure_of(base)
    found = one(pieces, "A prompt").made()
    site, t = found[0]
    if len(found) != 1 or site.role != "embedding":
        raise ModelError(
            f"peft puts a prompt in front of the embedded text; this one is at {', '.join(s.name for s, _ in found)[:200]}. "
            "Choose targets='embedding'."
        )
    length, width = t["P"].shape
    config = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": length,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "num_layers": len(structure.tower(site.tower).blocks),
        "num_attention_heads": None,
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "tokenizer_name_or_path": None,
    }
    return config, {PROMPT: t["P"]}


def from_folder(folder: Folder, base: nn.Module, drop: frozenset[str]) -> Imported:
    """The prompt that a folder holds. FileFormatError for another width or count."""
    from luthier.host.sites import find
    from luthier.methods.prompts.prompt_tuning import PromptTuning

    config = folder.config
    check_keys(config, READ, drop)
    structure = structure_of(base)
    site = find(structure, "embedding")[0]
    length = int(number(config, "num_virtual_tokens", least=1))
    copies = number(config, "num_transformer_submodules", default=1, least=1) if config.get("num_transformer_submodules") is not None else 1  # fmt: skip
    shape = one_tensor(folder)
    if copies not in (1, 2) or shape != (length * copies, site.out_features):
        raise FileFormatError(
            f"{PROMPT} is {shape}; {CONFIG} and this model need ({length * copies:g}, {site.out_features}): it is another base, or not this file's."
        )
    notes = []
    if copies == 2:
        notes.append(
            "the second half of the prompt, for the decoder, is not read by peft either and is left out"
        )
    method = PromptTuning(length=length)
    return Imported(method, [[site]], _fill(site.name, length), notes)


def _fill(site: str, length: int) -> Any:
    def fill(found: Mapping[str, Tensor]) -> dict[tuple[int, str, str], Tensor]:
        return {(0, site, "P"): found[PROMPT][:length]}

    return fill


def one_tensor(folder: Folder) -> tuple[int, ...]:
    """The shape of the only tensor of a prompt or prefix."""
    if set(folder.shapes) != {PROMPT}:
        odd = sorted(set(folder.shapes) ^ {PROMPT})[0]
        kind = "missing" if odd == PROMPT else "not expected"
        raise FileFormatError(f"The tensor {odd[:120]!r} is {kind}. Save the adapter anew with peft.")
    return folder.shapes[PROMPT]
