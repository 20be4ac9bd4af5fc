"""`luthier bench`: take the figures beside peers again, or show those that are stored."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli import options
from luthier.cli.show import as_json, figure, note, table
from luthier.errors import FileFormatError, OptionError, RunError

SHOWN = ("name", "ours", "peer", "peer_version", "ratio", "limit", "unit", "holds")
SHARED = "timing"
"""What the files of bench/ share: no figure of its own."""


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...", help="Files of bench/ without .py; none: all.", show_default=False
        ),
    ] = None,
    stored: Annotated[bool, typer.Option("--stored", help="Run nothing: show the stored figures.")] = False,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder with train.jsonl and test.jsonl, for the files that want one."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of both sides.")] = 2,
    json: options.Json = False,
) -> None:
    """Measure Luthier beside its peers, in turns in one process.

    Ends with 1 if a limit is not kept. Needs the sources and the extra `bench`; writes to bench/results.

    luthier bench training_step

    luthier bench --stored --json
    """
    folder = find_bench()
    there = sorted(p.stem for p in folder.glob("*.py") if p.stem != SHARED)
    chosen = list(dict.fromkeys(names or there))
    if unknown := [n for n in chosen if n not in there]:
        from luthier.host.options import did_you_mean

        raise OptionError(
            f"There is no {unknown[0]}.py in bench/.{did_you_mean(unknown[0], there)} There are: {', '.join(there)}."
        )
    figures, left = [], []
    if not stored:
        _need_peer()
        wanting = [n for n in chosen if wants_data(folder / f"{n}.py")]
        if wanting and data is None:
            if names:
                raise OptionError(
                    f"{wanting[0]} measures on data of yours. Add --data FOLDER (train.jsonl, test.jsonl)."
                )
            left = wanting
            note(f"left out, because they want --data FOLDER: {', '.join(left)}")
    for name in chosen:
        if name in left:
            continue
        if not stored:
            run(folder / f"{name}.py", data, threads)
        figures += read(folder / "results" / f"{name}.json")
    if json:
        as_json([{k: f.get(k) for k in SHOWN} for f in figures])
    else:
        rows = [
            [
                f["name"],
                *(figure(f.get(k)) for k in ("ours", "peer", "ratio", "limit")),
                f["unit"],
                _verdict(f),
            ]
            for f in figures
        ]
        table(["what", "here", "peer", "ratio", "limit", "unit", "holds"], rows, numbers=[1, 2, 3, 4])
    if not all(f["holds"] for f in figures):
        raise typer.Exit(1)


def _verdict(f: dict[str, Any]) -> str:
    return "yes" if f["holds"] else "NO"


def find_bench() -> Path:
    """The folder bench/ of the checkout: above the working directory, or beside the package."""
    here = Path.cwd()
    for root in (here, *here.parents, Path(__file__).resolve().parents[3]):
        if (root / "bench" / f"{SHARED}.py").is_file():
            return root / "bench"
    raise OptionError(
        "There is no bench/ above this folder, and none beside the package: it is part of the sources. Go to a checkout of luthier."
    )


def _need_peer() -> None:
    if find_spec("peft") is None:
        raise OptionError("The peer, peft, is not installed. Run: pip install -e .[bench] -c constraints.txt")


def wants_data(path: Path) -> bool:
    """Whether a file measures on a folder that is given to it."""
    return path.read_text(encoding="utf-8").split('"""')[1].splitlines()[2].split()[2:3] == ["DATA"]


def run(path: Path, data: Path | None, threads: int) -> None:
    """Run one file in a process of its own, so that no figure sees what another left behind."""
    note(f"{path.stem} ...")
    given = [str(data.resolve())] if data is not None and wants_data(path) else []
    source = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(p for p in (source, os.environ.get("PYTHONPATH")) if p)
    command = [sys.executable, str(path), *given, "--threads", str(threads)]
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        for said in running.stdout:  # progress: the result is what is printed at the end
            note(said.rstrip())
    if running.returncode:
        raise RunError(f"bench/{path.name} ended with {running.returncode}; what it said is above.")


def read(path: Path) -> list[dict[str, Any]]:
    """The figures of one file of results; `holds` is computed from them again."""
    import json

    if not path.is_file():
        raise OptionError(
            f"Nothing is stored of {path.stem}. Leave out --stored, or run: luthier bench {path.stem}"
        )
    try:
        figures = [dict(f) for f in json.loads(path.read_text(encoding="utf-8"))["figures"]]
        for f in figures:
            f["holds"] = (f["ours"] if f["ratio"] is None else f["ratio"]) <= f["limit"]
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(
            f"bench/results/{path.name} is damaged ({type(error).__name__}). Run: luthier bench {path.stem}"
        ) from None
    return figures
