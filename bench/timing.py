"""What the files of this folder share: taking turns with the peer, medians, and writing what was found."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def arguments(doc: str | None, argv: Sequence[str] | None, **extra: dict[str, Any]) -> argparse.Namespace:
    """The options that every file takes, and its own; threads are set here, before anything is computed."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for name, options in extra.items():
        parser.add_argument(
            name if options.pop("positional", False) else f"--{name.replace('_', '-')}", **options
        )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, help="turns that each figure takes (default: the file's own)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: only to see that it runs")
    parser.add_argument(
        "--out", type=Path, help="folder to write to (default: results/, or nowhere with --smoke)"
    )
    given = parser.parse_args(argv)
    import torch

    torch.set_num_threads(given.threads)
    return given


def seconds(function: Callable[[], Any], collect: bool = True) -> float:
    """Wall time of one call, without garbage collection. collect=False: many short calls, one after the other."""
    if collect:
        gc.collect()
    gc.disable()
    try:
        began = time.perf_counter()
        function()
        return time.perf_counter() - began
    finally:
        gc.enable()


def in_turns(
    ours: Callable[[], Any], peer: Callable[[], Any], pairs: int, warm: int = 2
) -> dict[str, list[float]]:
    """Seconds of both, A B B A A B B A: what else the machine does falls on both."""
    found: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(warm):
        ours(), peer()
    for i in range(pairs):
        for side in ("ours", "peer") if i % 2 == 0 else ("peer", "ours"):
            found[side].append(seconds(ours if side == "ours" else peer))
    return found


def ratio_of(runs: dict[str, list[float]]) -> float:
    """The median of the pairs' ratios."""
    return statistics.median(a / b for a, b in zip(runs["ours"], runs["peer"], strict=True))


def figure(
    name: str,
    ours: float,
    limit: float,
    unit: str,
    *,
    peer: float | None = None,
    peer_version: str | None = None,
    ratio: float | None = None,
    runs: Any = None,
) -> dict[str, Any]:
    """One figure. `ratio` is held against `limit`, or `ours` where there is none."""
    return {
        "name": name, "ours": ours, "peer": peer, "peer_version": peer_version, "ratio": ratio, "limit": limit, "unit": unit,
        "holds": (ours if ratio is None else ratio) <= limit, "runs": runs,
    }  # fmt: skip


def beside(name: str, runs: dict[str, list[float]], limit: float, peer_version: str) -> dict[str, Any]:
    """A figure of seconds taken in turns."""
    return figure(
        name, statistics.median(runs["ours"]), limit, "seconds", peer=statistics.median(runs["peer"]),
        peer_version=peer_version, ratio=ratio_of(runs), runs=runs,
    )  # fmt: skip


def peft_version() -> str:
    import peft

    return f"peft {peft.__version__}"


def write(name: str, figures: list[dict[str, Any]], given: argparse.Namespace) -> dict[str, Any]:
    """Show the figures and store them with what they were taken with."""
    import torch
    import transformers

    import luthier

    result = {
        "name": name,
        "figures": figures,
        "versions": {
            "luthier": luthier.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "threads": given.threads,
            "cores": os.cpu_count(),
            "processor": processor(),
            "system": platform.system(),
        },
    }
    for f in figures:
        shown = f["ours"] if f["ratio"] is None else f["ratio"]
        print(
            f"{f['name']}: {shown:.3g}, limit {f['limit']:g}{'' if f['holds'] else ': NOT REACHED'}",
            flush=True,
        )
    out = given.out or (None if given.smoke else RESULTS)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def processor() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    names = (
        [x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()
