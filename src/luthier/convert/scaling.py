"""(IA)3 to and from peft's IA3: a vector on a module's output, (out, 1), or on the input of a feed-forward one, (1, in).

To: vectors on slices of a fused projection become one with ones elsewhere. From: the tensors' shapes say which modules are
feed-forward; all that peft scales is carried, also where (IA)3 of the paper has no vector (BERT's attention output).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.convert.folder import CONFIG, PREFIX, Folder, check_keys
from luthier.convert.names import check_targets, ends, exactly, modules_of, resolve
from luthier.convert.parts import Imported, Piece, slice_into
from luthier.errors import FileFormatError, ModelError
from luthier.host.structure import structure_of

READ = frozenset(
    {"target_modules", "exclude_modules", "feedforward_modules", "fan_in_fan_out", "init_ia3_weights"}
)
L = "ia3_l"


def to_config(pieces: Sequence[Piece], base: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """peft's configuration and tensors of scaled outputs and inputs."""
    from luthier.methods.scaling.ia3 import ScaledInputs

    outputs: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    turned = False
    for piece in pieces:
        if piece.scale != 1.0:
            raise ModelError(
                "A multiple of (IA)3 can't be exported: peft multiplies where luthier adds effects. Export it with coefficient 1."
            )
        into = inputs if isinstance(piece.part, ScaledInputs) else outputs
        for site, t in piece.made():
            value = t["l"] if into is inputs else slice_into(base, site, t["l"], 1.0)
            if into is inputs and site.rows is not None:
                raise ModelError(
                    f"{site.name} is a slice, whose input peft can't scale on its own. Choose the whole projection."
                )
            into[site.path] = into[site.path] * value if site.path in into else value
            turned |= site.transposed
    if both := sorted(set(outputs) & set(inputs)):
        raise ModelError(
            f"{both[0]} has its input and its output scaled; peft's IA3 does one of them. Choose other targets."
        )
    order = [n for n, _ in base.named_modules() if n in outputs or n in inputs]
    tensors = {f"{PREFIX}{n}.{L}": outputs[n][:, None] if n in outputs else inputs[n][None, :] for n in order}
    forward = [n for n in order if n in inputs]
    targets = exactly(base, order)
    config = {
        "peft_type": "IA3",
        "target_modules": targets,
        "feedforward_modules": exactly(base, forward, ends) if forward else [],
        "fan_in_fan_out": turned,
        "init_ia3_weights": True,
    }
    return config, tensors


def from_folder(folder: Folder, base: nn.Module, drop: frozenset[str]) -> Imported:
    """The (IA)3 that a folder describes. FileFormatError for what it cannot be exactly."""
    from luthier.methods.scaling.ia3 import IA3

    config = folder.config
    check_keys(config, READ, drop)
    modules = modules_of(folder.shapes, (L,))
    structure = structure_of(base)
    resolved = resolve(base, structure, modules)
    notes = check_targets(config, resolved, base)
    forward = config.get("feedforward_modules") or []
    evaluated = isinstance(forward, list) and all(isinstance(f, str) for f in forward)
    sites: list[list[Any]] = [[], []]
    name = {}
    for n, site in resolved.sites.items():
        shape = folder.shapes[modules[n][L]]
        wide = shape == (1, site.in_features)
        if shape == (1, 1) or not (wide or shape == (site.out_features, 1)):
            raise FileFormatError(
                f"The tensor at {n[:120]!r} is {shape}; this model needs ({site.out_features}, 1), or (1, {site.in_features}) "
                "for a feed-forward module: it is another base."
            )
        if evaluated and ends(forward, n) != wide:
            raise FileFormatError(
                f"{CONFIG}: feedforward_modules and the tensor of {n[:120]!r}, {shape}, contradict each other. Save the adapter anew."
            )
        sites[int(wide)].append(site)
        name[site.name] = n
    sites = [[s for s in structure.sites if s in here] for here in sites]

    def fill(found: Mapping[str, Tensor]) -> dict[tuple[int, str, str], Tensor]:
        return {
            (i, s.name, "l"): torch.flatten(found[modules[name[s.name]][L]])
            for i, here in enumerate(sites)
            for s in here
        }

    return Imported(IA3(), sites, fill, notes)
