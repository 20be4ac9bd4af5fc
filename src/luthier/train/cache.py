"""The frozen-prefix cache: what the blocks below the lowest trained place return is computed once per row, then handed on.

Values come from canonical batches in a fixed order, are written before they are used, and are keyed by the content of model,
data and preprocessing: a resumed run reads what an uninterrupted one would. Cached and uncached agree to 1e-5, because a row
in a batch of another padded width moves by about 2e-6.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.host.adapted import Adapted
from luthier.host.context import Context
from luthier.host.depth import lowest_block, reads_every_block
from luthier.host.exchange import OUTSIDE_CACHE, exchange
from luthier.train.batches import Encoded, in_order

CANONICAL = 32
"""Rows of a canonical batch."""
IN_MEMORY = 2 * 2**30
"""Bytes that may be held in memory; above, values are read from the run folder's files."""
ON_DISK = 40 * 2**30
IMAGE_TOKENS = 256
"""Tokens that a row without a length (an image) is reckoned to have."""


class PrefixCache:
    """Outputs of frozen blocks by row. While installed, the blocks below `depth` are not run for rows that it holds."""

    def __init__(self, adapted: Adapted, tower: str, depth: int, levels: tuple[int, ...]):
        self.adapted, self.tower, self.depth, self.levels = adapted, tower, depth, levels
        self.shards: list[Mapping[int, Tensor]] = []
        """Per canonical batch {level: (tokens of all its rows, width)}."""
        self.places: dict[int, tuple[int, int, int]] = {}
        """{row: (shard, first token, tokens)}."""
        self.bytes = 0
        self.handles: list[Any] = []

    # -- use

    def install(self) -> None:
        if reads_every_block(self.adapted.adaptations["main"].every_placed()):  # type: ignore[operator]
            self.adapted.cache = self
            return
        blocks = self.adapted.structure.tower(self.tower).blocks
        for i in range(self.depth):
            handler = _Skip(self, i).forward
            self.handles.append(exchange(self.adapted.base.get_submodule(blocks[i]), handler, OUTSIDE_CACHE))

    def remove(self) -> None:
        for h in self.handles:
            h.remove()
        self.handles = []
        if self.adapted.cache is self:
            self.adapted.cache = None

    def rows(self, ctx: Context | None) -> list[int] | None:
        """The rows of the forward under way, if this cache holds all of them and nothing else acts below its depth."""
        if ctx is None or ctx.active not in (("main",), ()) or ctx.phase != "prefill":
            return None
        examples = ctx.given.get("example")
        if examples is None:
            return None
        rows = examples.tolist()
        return rows if all(r in self.places for r in rows) else None

    def output(self, tower: str, level: int) -> Tensor | None:
        """(rows, tokens, width) of one block for the rows under way; None where they must be computed."""
        ctx = self.adapted.context()
        rows = self.rows(ctx) if tower == self.tower and level in self.levels else None
        if rows is None or ctx is None:
            return None
        pieces = []
        for r in rows:
            shard, start, length = self.places[r]
            pieces.append(self.shards[shard][level][start : start + length])
        device = ctx.given["example"].device
        if ctx.mask is None:
            return torch.stack(pieces).to(device)
        return _padded(pieces, ctx.mask).to(device)

    # -- fill

    def fill(
        self, data: Encoded, folder: Path | None, barrier: Callable[[str], None], processes: Any = None
    ) -> None:
        """Compute, or read from `folder`, every canonical batch of a split. Several processes share the computing out."""
        from luthier.models.weights import read

        device = next(self.adapted.base.parameters()).device
        if folder is None:
            for _, batch in in_order(data, CANONICAL, device):
                self._take(batch, self._compute(batch))
            return
        folder.mkdir(parents=True, exist_ok=True)
        if processes is not None and processes.world > 1:
            for number, (_, batch) in enumerate(in_order(data, CANONICAL, device)):
                path = folder / f"{number:06d}.safetensors"
                if number % processes.world == processes.rank and not path.is_file():
                    write_shard(path, self._compute(batch), barrier)
            processes.wait()
        for number, (_, batch) in enumerate(in_order(data, CANONICAL, device)):
            path = folder / f"{number:06d}.safetensors"
            if path.is_file():
                held = {int(k): v for k, v in read(path).items()}
            else:
                held = self._compute(batch)
                write_shard(path, held, barrier)
            self._take(batch, held)

    @torch.no_grad()
    def _compute(self, batch: Mapping[str, Any]) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        blocks = self.adapted.structure.tower(self.tower).blocks
        handles = [
            self.adapted.base.get_submodule(blocks[i]).register_forward_hook(
                _Capture(i, found, i == max(self.levels)).hook
            )
            for i in self.levels
        ]
        try:
            with self.adapted.using(), contextlib.suppress(_Enough):
                self.adapted(batch)
        finally:
            for h in handles:
                h.remove()
        mask = batch.get("attention_mask")
        return {
            i: (h[mask.bool()] if mask is not None else h.flatten(0, 1)).cpu().contiguous()
            for i, h in found.items()
        }

    def _take(self, batch: Mapping[str, Any], held: Mapping[int, Tensor]) -> None:
        mask, examples = batch.get("attention_mask"), batch["example"].tolist()
        total = next(iter(held.values())).shape[0]
        lengths = mask.sum(1).tolist() if mask is not None else [total // len(examples)] * len(examples)
        start = 0
        for example, n in zip(examples, lengths, strict=True):
            self.places[example] = len(self.shards), start, n
            start += n
        self.shards.append(held)
        self.bytes += sum(t.numel() * t.element_size() for t in held.values())


def write_shard(path: Path, held: Mapping[int, Tensor], barrier: Callable[[str], None]) -> None:
    """Aside, synced, renamed."""
    from safetensors.torch import save

    aside = path.with_suffix(".partial")
    with open(aside, "wb") as f:
        f.write(save({str(k): v for k, v in held.items()}))
        barrier("cache: half written")
        f.flush()
        os.fsync(f.fileno())
    os.replace(aside, path)
    barrier("cache: shard written")


def _padded(pieces: list[Tensor], mask: Tensor) -> Tensor:
    """Rows of tokens, (n, width) each, laid out where `mask`, (rows, tokens), has ones; zero elsewhere.

    Padding on one side is the rule: whole rows are copied then, ten times faster than entry by entry.
    """
    seen = mask.bool().cpu()
    out = pieces[0].new_zeros(*seen.shape, pieces[0].shape[-1])
    first = seen.int().argmax(1)
    last = seen.shape[1] - seen.flip(1).int().argmax(1)
    if bool((last - first == seen.sum(1)).all()):
        for i, (begin, piece) in enumerate(zip(first.tolist(), pieces, strict=True)):
            out[i, begin : begin + len(piece)] = piece
    else:
        out[seen] = torch.cat(pieces)
    return out


class _Enough(Exception):
    """Ends a forward behind the last block that is wanted."""


class _Capture:
    """Keeps what one block returns."""

    def __init__(self, level: int, into: dict[int, Tensor], last: bool):
        self.level, self.into, self.last = level, into, last

    def hook(self, module: Any, args: Any, out: Any) -> None:
        self.into[self.level] = out
        if self.last:
            raise _Enough


class _Skip:
    """A frozen block: hands on what it is given, and the last one what was cached."""

    def __init__(self, cache: PrefixCache, index: int):
        self.cache, self.index = cache, index

    def forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        cache = self.cache
        if cache.rows(cache.adapted.context()) is None:
            return original(*args, **kwargs)
        if self.index < cache.depth - 1:
            return args[0] if args else kwargs["hidden_states"]
        return cache.output(cache.tower, self.index)


def plan(adapted: Adapted, run: Any) -> tuple[str, int, tuple[int, ...]] | str:
    """(tower, depth, levels) of what can be cached, or the reason why nothing is."""
    if run.processes is not None and run.processes.sharded:
        return "the base is sharded"
    if not adapted.structure.towers:
        return "the model has no blocks"
    if any(d.per_row > 1 for d in run.batches.streams.values()):
        return "every row is read several times: once per class, or as a query and its document"
    tower = adapted.structure.towers[0]
    parts = adapted.adaptations["main"].every_placed()  # type: ignore[operator]
    depth = lowest_block(adapted.structure, parts, tower.name)
    if depth <= 0:
        return "the lowest trained place is at the input or in the first block"
    if any(p.uses not in (None, ("main",)) for p in run.phases):
        return "the plan uses several adaptations"
    if any(getattr(d, "augmented", False) for d in run.batches.streams.values()):
        return "the data is augmented: a row is not the same twice"
    if sum(run.steps) <= run.batches.per_epoch("train"):
        return "every row is seen at most once"
    return tower.name, depth, tuple(range(depth)) if reads_every_block(parts) else (depth - 1,)


@contextlib.contextmanager
def prefix_cache(
    adapted: Adapted,
    splits: Mapping[str, Encoded],
    folder: Path | None,
    *,
    run: Any,
    key: str = "",
    barrier: Callable[[str], None] = lambda name: None,
    limit: int = IN_MEMORY,
) -> Iterator[PrefixCache | str]:
    """The cache of a run's training and validation rows, installed inside the block; or the reason why there is none.

    folder: where values are kept while the run lasts. key: content of model, data and preprocessing; other content clears it.
    """
    processes = run.processes
    found = plan(adapted, run)
    wanted = {n: d for n, d in splits.items() if n in ("train", "validation") and d is not None}
    if not isinstance(found, str):
        found = _affordable(adapted, found, wanted, folder, limit)
    if processes is not None:
        found = processes.from_main(found)  # free room may have changed between two looks
    if isinstance(found, str):
        yield found
        return
    tower, depth, levels = found
    cache = PrefixCache(adapted, tower, depth, levels)
    if folder is not None:
        main = processes is None or processes.main
        folder = _keyed(folder, f"{key} {tower} {levels} {torch.__version__} {torch.get_num_threads()}", main)
    for name, data in wanted.items():
        cache.fill(data, folder / name if folder is not None else None, barrier, processes)
        if cache.bytes > limit and folder is not None:  # memory is bounded: from here on files are read
            files = [
                f for n in wanted if (folder / n).is_dir() for f in sorted((folder / n).glob("*.safetensors"))
            ]
            cache.shards = [_OnDisk(f) for f in files[: len(cache.shards)]]
    cache.install()
    try:
        yield cache
    finally:
        cache.remove()


def _affordable(
    adapted: Adapted, found: Any, wanted: Mapping[str, Encoded], folder: Path | None, limit: int
) -> Any:
    """`found`, or why it would not do on this machine and model."""
    tower, _, levels = found
    tokens = sum(int(d.lengths.sum()) or len(d) * IMAGE_TOKENS for d in wanted.values())
    size = tokens * adapted.structure.tower(tower).width * len(levels) * 4
    most = limit if folder is None else min(ON_DISK, shutil.disk_usage(_nearest(folder)).free // 2)
    if size > most:
        return f"it would take {size / 2**30:.1f} GiB, and {most / 2**30:.1f} GiB are free for it"
    if not _plain_blocks(adapted, tower, next(iter(wanted.values()))):
        return "the blocks hand on more than hidden states"
    return found


def _nearest(folder: Path) -> Path:
    return next(p for p in (folder, *folder.resolve().parents) if p.exists())


def _keyed(folder: Path, key: str, clear: bool = True) -> Path:
    """The folder for this content; one for other content is removed."""
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    if clear and folder.is_dir():
        for old in folder.iterdir():
            if old.name != digest:
                shutil.rmtree(old, ignore_errors=True)
    return folder / digest


def _plain_blocks(adapted: Adapted, tower: str, data: Encoded) -> bool:
    """Whether blocks return a tensor alone: what else they hand on would be missing behind skipped ones."""
    found: dict[int, Any] = {}
    block = adapted.base.get_submodule(adapted.structure.tower(tower).blocks[0])
    handle = block.register_forward_hook(_Capture(0, found, True).hook)
    try:
        with torch.no_grad(), adapted.using(), contextlib.suppress(_Enough):
            adapted(data.batch([0], next(adapted.base.parameters()).device))
    finally:
        handle.remove()
    return torch.is_tensor(found.get(0)) and found[0].dim() == 3


class _OnDisk(dict):
    """A shard that is read when it is wanted."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def __missing__(self, level: int) -> Tensor:
        from luthier.models.weights import read

        return read(self.path)[str(level)]
