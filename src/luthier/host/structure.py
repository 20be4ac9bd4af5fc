"""Finding a model's towers, sites and roles by structure and by the names that the field agrees on; no model family is named."""

from __future__ import annotations

import inspect
import re
import weakref
from typing import Any

from torch import nn

from luthier.host.quantised import stored_as
from luthier.host.sites import Site, Structure, Tower, is_linear, is_transposed
from luthier.host.slim import Slim

QUERY = re.compile(r"^(q|query|q_proj|q_lin|to_q|wq|query_proj|q_attn|linear_q)$", re.I)
KEY = re.compile(r"^(k|key|k_proj|k_lin|to_k|wk|key_proj|linear_k)$", re.I)
VALUE = re.compile(r"^(v|value|v_proj|v_lin|to_v|wv|value_proj|linear_v)$", re.I)
FUSED = re.compile(r"^(c_attn|qkv|qkv_proj|wqkv)$", re.I)
INTERLEAVED = re.compile(r"^(query_key_value)$", re.I)
CROSS = re.compile(r"cross|encdec|encoder_attn|enc_attn", re.I)
GATE = re.compile(r"(^|_)(gate|wi_0|w1)(_proj)?$", re.I)
ROUTER = re.compile(r"^(gate|router|classifier)$", re.I)
DOWN = re.compile(r"(^|_)(fc2|down|down_proj|wo|w2|c_proj|lin2|output|dense_4h_to_h)$", re.I)
ENTRY_ARGUMENTS = (("input_ids", "pixel_values", "input_values", "input_features"), ("inputs_embeds",))


Shapes = tuple[tuple[int, ...], ...]
_KNOWN: weakref.WeakKeyDictionary[nn.Module, tuple[Shapes, Structure]] = weakref.WeakKeyDictionary()


def structure_of(model: nn.Module) -> Structure:
    """`discover`, remembered for as long as the model lives and its parameters keep their shapes (embeddings are resized)."""
    shapes = tuple(tuple(p.shape) for p in model.parameters())
    held = _KNOWN.get(model)
    if held is None or held[0] != shapes:
        held = _KNOWN[model] = shapes, discover(model)
    return held[1]


def discover(model: nn.Module) -> Structure:
    """The structure of any module. A model without blocks has no towers, but its linear layers are sites all the same."""
    modules = dict(model.named_modules(remove_duplicate=False))
    lists = _block_lists(modules)
    towers, sites, roles, cross = [], [], {}, set()
    for path, blocks in lists:
        tower_name = _tower_name(path, [p for p, _ in lists])
        for layer, block in enumerate(blocks):
            for name, role, extra in _block_sites(modules[block], block):
                roles[name] = (role, tower_name, layer, extra)
                if role.startswith("cross_attention"):
                    cross.add(tower_name)
        towers.append((tower_name, path, blocks))
    made = []
    for index, (name, path, blocks) in enumerate(towers):
        entry = _entry(model, modules, path)
        embedding = _embedding(modules, entry)
        takes = frozenset(inspect.signature(modules[entry].forward).parameters)
        first = modules[blocks[0]]
        causal = any(getattr(m, "is_causal", False) for m in first.modules()) or hasattr(first, "mixer")
        reads = towers[index - 1][0] if name in cross and index else None
        made.append(
            Tower(
                name,
                entry,
                tuple(blocks),
                embedding,
                causal,
                reads,
                takes,
                _width(model, modules, entry, first),
            )
        )
    outside = _outside(model, modules, made)
    seen: set[int] = set()
    for path, module in modules.items():
        known: Any = roles.get(path) or outside.get(path) or (None, "", _layer_of(path, made), None)
        role, tower, layer, extra = known
        parameters = list(module.named_parameters(recurse=False))
        # a tied parameter belongs to the first module that holds it
        own = tuple((n, tuple(p.shape)) for n, p in parameters if id(p) not in seen)
        if role is None and not own:
            continue
        seen.update(id(p) for _, p in parameters)
        sites.extend(
            _make(
                path, module, role or _kind(module), tower or _tower_of(path, made), layer, extra or {}, own
            )
        )
    return Structure(type(model).__name__, tuple(made), tuple(sites))


def _block_lists(modules: dict[str, nn.Module]) -> list[tuple[str, list[str]]]:
    """Outermost lists of blocks: (path of the list, paths of its items)."""
    found: list[tuple[str, list[str]]] = []
    for path, module in modules.items():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or any(
            path.startswith(p + ".") for p, _ in found
        ):
            continue
        items = list(module.named_children())
        blocks = [
            m
            for _, m in items
            if next(m.children(), None) is not None and any(is_linear(x) for x in m.modules())
        ]
        alike = len({type(m) for m in blocks}) == 1
        if (
            not items
            or len(blocks) != len(items)
            or (isinstance(module, nn.Sequential) and not (alike and len(blocks) > 1))
        ):
            continue
        found.append((path, [f"{path}.{n}" if path else n for n, _ in items]))
    return found


def _tower_name(path: str, paths: list[str]) -> str:
    """`main` for a single tower, else the part of the path that tells the towers apart (encoder, decoder, text_model...)."""
    if len(paths) == 1:
        return "main"
    for word in path.split("."):
        if sum(word in p.split(".") for p in paths) == 1:
            return word
    return path


def _entry(model: nn.Module, modules: dict[str, nn.Module], path: str) -> str:
    """The lowest ancestor of a list of blocks that takes a sequence from outside."""
    ancestors = []
    while path:
        path = path.rpartition(".")[0]
        ancestors.append(path)
    arguments = {a: inspect.signature(modules[a].forward).parameters for a in ancestors}
    for wanted in ENTRY_ARGUMENTS:
        for a in ancestors:
            if any(w in arguments[a] for w in wanted):
                return a
    return ""


def _embedding(modules: dict[str, nn.Module], entry: str) -> str | None:
    get = getattr(modules[entry], "get_input_embeddings", None)
    try:
        module = get() if get else None
    except (NotImplementedError, AttributeError):
        module = None
    if not isinstance(module, nn.Embedding):
        return None
    prefix = entry + "." if entry else ""
    return next((n for n, m in modules.items() if m is module and n.startswith(prefix)), None)


def _width(model: nn.Module, modules: dict[str, nn.Module], entry: str, block: nn.Module) -> int:
    config = getattr(modules[entry], "config", None)
    width = getattr(config, "hidden_size", None)
    if isinstance(width, int):
        return width
    norms = [
        p.shape[0]
        for m in block.modules()
        if "norm" in type(m).__name__.lower()
        for p in m.parameters(recurse=False)
    ]
    linears = [m.out_features for m in block.modules() if isinstance(m, nn.Linear)]
    return norms[0] if norms else (linears[-1] if linears else 0)


def _block_sites(block: nn.Module, path: str) -> list[tuple[str, str, dict]]:
    """(module path, role, extras) of everything with a role inside one block."""
    out: list[tuple[str, str, dict]] = [(path, "block", {})]
    inside = {f"{path}.{n}" if n else path: m for n, m in block.named_modules()}
    slim = tuple(f"{n}." for n, m in inside.items() if isinstance(m, Slim))
    inside = {n: m for n, m in inside.items() if not n.startswith(slim)}  # its two layers have no role
    attention: dict[str, str] = {}  # container -> role prefix
    for name, module in inside.items():
        children = {n: m for n, m in module.named_children() if is_map(m)}
        q, k, v = (next((n for n in children if r.match(n)), None) for r in (QUERY, KEY, VALUE))
        fused = next((n for n in children if FUSED.match(n)), None)
        mixed = next((n for n in children if INTERLEAVED.match(n)), None)
        if not ((q and k and v) or fused or mixed):
            continue
        prefix = (
            "cross_attention"
            if CROSS.search(name[len(path) :]) or getattr(module, "is_cross_attention", False)
            else "attention"
        )
        attention[name] = prefix
        dim, heads = _heads(module, children, k, fused, q)
        out.append((name, prefix, {"heads": heads, "head_dim": dim, "scaling": _scaling(module, dim)}))
        if fused and not q:
            out.append((f"{name}.{fused}", f"{prefix}.qkv", {"slices": _slices(children[fused], dim, heads)}))
        elif mixed:
            out.append(
                (f"{name}.{mixed}", f"{prefix}.qkv", {})
            )  # interleaved by head: not a contiguous slice, edited whole
        else:
            names = ((q, "query"), (k, "key"), (v, "value"))
            out += [(f"{name}.{n}", f"{prefix}.{role}", {}) for n, role in names if n]
            if fused:
                out.append((f"{name}.{fused}", f"{prefix}.qkv", {}))
        out += [
            (o, f"{prefix}.output", _closing(inside[o], dim))
            for o in _outputs(inside, name, path, {x for x in (q, k, v, fused, mixed) if x})
        ]
    taken = {n for n, _, _ in out}
    width = _residual_width(inside, out)
    ssm = {n for n, m in inside.items() if hasattr(m, "A_log")}
    linears = [(n, m) for n, m in inside.items() if is_map(m) and n not in taken]
    for name, module in linears:
        owner, leaf = name.rpartition(".")[0], name.rpartition(".")[2]
        role = f"ssm.{leaf.removesuffix('_proj')}" if owner in ssm else _mlp_role(leaf, name, module, width)
        out.append((name, role, {}))
    for name, module in inside.items():
        if name in ssm:
            out.append((name, "ssm", {}))
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            out.append((name, "ssm.conv" if name.rpartition(".")[0] in ssm else "conv", {}))
        elif _is_norm(module):
            out.append((name, "norm", {}))
    return out


def _heads(
    module: nn.Module, children: dict[str, nn.Module], k: str | None, fused: str | None, q: str | None
) -> tuple[int, int]:
    """(head width, key/value heads) of an attention module."""
    dim = next(
        (
            d
            for a in ("head_dim", "attention_head_size", "key_value_proj_dim", "dim_per_head")
            if isinstance(d := getattr(module, a, None), int)
        ),
        0,
    )
    count = next(
        (
            n
            for a in ("num_heads", "num_attention_heads", "n_heads", "heads")
            if isinstance(n := getattr(module, a, None), int)
        ),
        0,
    )
    if not dim and count:
        total = _out(children[q]) if q else _out(children[fused]) // 3 if fused else 0
        dim = total // count
    kv = getattr(module, "num_key_value_heads", None) or getattr(
        getattr(module, "config", None), "num_key_value_heads", None
    )
    if dim and k:
        return dim, _out(children[k]) // dim
    return dim, kv if isinstance(kv, int) else count


def _scaling(module: nn.Module, dim: int) -> float:
    """What an attention module multiplies its scores by: as it says, or dim ** -0.5."""
    own = getattr(module, "scaling", None)
    return float(own) if isinstance(own, (int, float)) else dim**-0.5 if dim else 0.0


def _slices(module: nn.Module, dim: int, heads: int) -> dict[str, tuple[int, int]]:
    """Rows of query, key and value in a projection that concatenates them."""
    total = _out(module)
    kv = heads * dim if heads and dim and total > 2 * heads * dim else total // 3
    q = total - 2 * kv
    return {"query": (0, q), "key": (q, q + kv), "value": (q + kv, total)}


def _outputs(inside: dict[str, nn.Module], container: str, block: str, taken: set[str]) -> list[str]:
    """The projection that closes an attention: in its container, or beside it under the same parent."""
    own = [
        n
        for n, m in inside.items()
        if n.startswith(container + ".") and is_map(m) and n.rpartition(".")[2] not in taken
    ]
    if own:
        return own[-1:]
    parent = container.rpartition(".")[0]
    if parent == block or not parent.startswith(block):
        return []
    beside = [
        n
        for n, m in inside.items()
        if n.startswith(parent + ".") and not n.startswith(container + ".") and is_map(m)
    ]
    return beside[:1]


def _closing(module: nn.Module, dim: int) -> dict[str, int]:
    """The heads that a closing projection receives side by side, if their width is known and divides what it takes."""
    return {"heads": _in(module) // dim, "head_dim": dim} if dim and not _in(module) % dim else {}


def _residual_width(inside: dict[str, nn.Module], out: list[tuple[str, str, dict]]) -> int:
    for name, role, _ in out:
        if role.endswith(".output"):
            return _out(inside[name])
    linears = [m for m in inside.values() if is_map(m)]
    return _in(linears[0]) if linears else 0


def _mlp_role(leaf: str, name: str, module: nn.Module, width: int) -> str:
    wide, out = _in(module), _out(module)
    if (
        wide == width and out == width
    ):  # square: the name decides, or that of what holds it (BERT's output.dense)
        holder = name.rpartition(".")[0].rpartition(".")[2]
        if DOWN.search(leaf) or DOWN.search(holder):
            return "mlp.down"
        return "mlp.gate" if GATE.search(leaf) else "mlp.up"
    if wide == width:
        if ROUTER.match(leaf):
            return "router"
        return "mlp.gate" if GATE.search(leaf) else "mlp.up"
    return "mlp.down" if out == width else "linear"


def _outside(
    model: nn.Module, modules: dict[str, nn.Module], towers: list[Tower]
) -> dict[str, tuple[str, str, int | None, dict]]:
    """Roles of what lies before, between and after the blocks."""
    out: dict[str, tuple[str, str, int | None, dict]] = {}
    blocks = tuple(b + "." for t in towers for b in t.blocks)
    inputs = {t.embedding: t for t in towers if t.embedding}
    get = getattr(model, "get_output_embeddings", None)
    try:
        head = get() if get else None
    except (NotImplementedError, AttributeError):
        head = None
    first = towers[0].name if towers else ""
    for path, module in modules.items():
        if path.startswith(blocks) or path in {b[:-1] for b in blocks}:
            continue
        tower = _tower_of(path, towers)
        if path in inputs:
            t = inputs[path]
            role = "embedding" if t.name == first else f"{t.name}.embedding"
            out[path] = (role, t.name, None, {})
        elif head is not None and module is head:
            out[path] = ("head", tower, None, {})
        elif isinstance(module, nn.Embedding):
            if not any(
                modules[p] is module or modules[p].weight is module.weight for p in inputs if p != path
            ):
                out[path] = ("embedding.other", tower, None, {})
        elif _is_norm(module) and towers:
            before = "embed" in path.lower()
            out[path] = ("norm.embedding" if before else "norm.final", tower, None, {})
        elif is_linear(module) and "pooler" in path:
            out[path] = ("pooler", tower, None, {})
    return out


def _tower_of(path: str, towers: list[Tower]) -> str:
    """The tower whose entry holds a path, the innermost first."""
    inside = [t for t in towers if not t.entry or path == t.entry or path.startswith(t.entry + ".")]
    return max(inside, key=lambda t: len(t.entry)).name if inside else (towers[0].name if towers else "")


def _layer_of(path: str, towers: list[Tower]) -> int | None:
    """Index of the block that a path lies in."""
    return next((i for t in towers for i, b in enumerate(t.blocks) if path.startswith(b + ".")), None)


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.MultiheadAttention):
        return "attention.packed"
    if is_linear(module):
        return "linear"
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return "conv"
    return "norm" if _is_norm(module) else "embedding.other" if isinstance(module, nn.Embedding) else "other"


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and next(module.children(), None) is None


def is_map(module: nn.Module) -> bool:
    """A linear map of one layer, or of the two of a slim one."""
    return is_linear(module) or isinstance(module, Slim)


def _in(module: nn.Module) -> int:
    if isinstance(module, Slim) or (isinstance(module, nn.Linear) and stored_as(module)):
        return module.in_features
    return module.weight.shape[0 if is_transposed(module) else 1]  # type: ignore[union-attr,index,return-value]


def _out(module: nn.Module) -> int:
    if isinstance(module, Slim) or (isinstance(module, nn.Linear) and stored_as(module)):
        return module.out_features
    return module.weight.shape[1 if is_transposed(module) else 0]  # type: ignore[union-attr,index,return-value]


def _make(
    path: str, module: nn.Module, role: str, tower: str, layer: int | None, extra: dict, own: tuple
) -> list[Site]:
    """The site of a module; a fused projection also yields one for each slice."""
    weight = getattr(module, "weight", None)
    if is_map(module):
        sizes = (_in(module), _out(module))
    elif isinstance(module, nn.Embedding):
        sizes = (module.num_embeddings, module.embedding_dim)
    elif weight is not None and hasattr(weight, "dim") and weight.dim() >= 1:
        sizes = (weight.shape[1] if weight.dim() > 1 else weight.shape[0], weight.shape[0])
    else:
        sizes = (0, 0)
    if role in ("block", "attention", "cross_attention"):
        inner = [m for m in module.modules() if is_map(m)]
        sizes = (_in(inner[0]), _in(inner[0])) if inner else sizes
    heads, dim = extra.get("heads", 0), extra.get("head_dim", 0)
    turned = is_transposed(module)
    whole = Site(
        path,
        path,
        role,
        tower,
        layer,
        sizes[0],
        sizes[1],
        None,
        turned,
        heads,
        dim,
        own,
        extra.get("scaling", 0.0),
    )
    prefix = role.rpartition(".")[0]
    return [
        whole,
        *(
            Site(
                f"{path}#{k}",
                path,
                f"{prefix}.{k}",
                tower,
                layer,
                sizes[0],
                stop - start,
                (start, stop),
                turned,
            )
            for k, (start, stop) in extra.get("slices", {}).items()
        ),
    ]
