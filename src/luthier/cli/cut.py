"""`luthier cut`: the smaller model that a method which cuts leaves."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli import options
from luthier.cli.show import as_json, line, note


def cut(
    directory: options.Directory,
    out: Annotated[str, typer.Option("--out", help="The folder to write: model/ and adaptation/.")],
    model: options.Base = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """Write the smaller model that an adaptation by skip leaves, and the adaptation for it.

    The base itself stays as it is. What is written loads as any model of Transformers.

    luthier cut out/ --out small/

    luthier predict small/adaptation --model small/model --text "Not worth the money."
    """
    from luthier.cli.adaptation import open_adaptation
    from luthier.train.smaller import numbers, write_smaller

    fitted = open_adaptation(directory, model, device, dtype)
    made = write_smaller(fitted, out)
    before, left = numbers(fitted.model), numbers(made.model)
    if json:
        as_json({"folder": out, "parameters": before, "left": left})
        return
    line(f"{out}: {left:,} of {before:,} parameters are left ({1 - left / before:.0%} are cut)")
    note(f"use: luthier predict {out}/adaptation --model {out}/model")
