"""`luthier convert`: adaptations to and from other libraries' folders."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli import options
from luthier.cli.show import as_json, line, note
from luthier.errors import OptionError


def convert(
    directory: Annotated[
        str | None,
        typer.Argument(metavar="DIR", help="With --to: a run folder or an adaptation's folder."),
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="peft: write DIR as an adapter of peft.")] = None,
    source: Annotated[
        str | None, typer.Option("--from", help="peft: read an adapter of peft, the folder DIR.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="The folder to write.")] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", help="With --from: leave this key out (modules_to_save)."),
    ] = None,
    model: options.Base = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """Convert an adaptation to or from peft's layout.

    Exact or refused: outputs are the same on both sides. LoRA, (IA)3, prompts and prefixes.

    luthier convert --to peft out/ --out adapter/

    luthier convert --from peft adapter/ --model builtin:minilm --out back/
    """
    if (to is None) == (source is None):
        raise OptionError("Say --to peft or --from peft, one of them.")
    if (to or source) != "peft":
        raise OptionError(f"{to or source!r} is not a layout that can be converted. There is: peft.")
    if directory is None or out is None:
        raise OptionError("Give the folder to read, and the one to write with --out.")
    if to is not None:
        if drop:
            raise OptionError("--drop goes with --from.")
        report = _export(directory, out, model, device, dtype)
    else:
        report = _import(directory, out, model, device, dtype, drop or [])
    if json:
        as_json(report)
        return
    line(f"{out}: {report['kind']}, {report['parameters']:,} parameters")
    for text in report["notes"]:
        note(f"note: {text}")


def _export(directory: str, out: str, model: str | None, device: str, dtype: str) -> dict:
    from luthier.cli.adaptation import open_any
    from luthier.convert import to_peft
    from luthier.convert.folder import read_folder

    found, base = open_any(directory, model, device, dtype)
    notes = to_peft(found, base, out)
    written = read_folder(out)
    return {"to": "peft", "folder": out, "kind": written.kind, "parameters": _count(written), "notes": notes}


def _import(directory: str, out: str, model: str | None, device: str, dtype: str, drop: list[str]) -> dict:
    from luthier.convert import from_peft
    from luthier.convert.folder import read_folder
    from luthier.host.files import save
    from luthier.models.load import load

    if model is None:
        raise OptionError(
            "Say which base model the adapter is for with --model: what a folder names is not fetched."
        )
    written = read_folder(directory)
    base = load(model, device=device, dtype=dtype)
    made = from_peft(directory, base, drop=drop)
    save(made, out, base.fingerprint)
    notes = list(made.about["notes"])
    if made.task is None:
        notes.append("it carries no task: attach it in Python, model.attached(lt.load_adaptation(...))")
    return {
        "from": "peft",
        "folder": out,
        "kind": written.kind,
        "parameters": _count(written),
        "notes": notes,
    }


def _count(folder: object) -> int:
    from math import prod

    return sum(prod(s) for s in folder.shapes.values())  # type: ignore[attr-defined]
