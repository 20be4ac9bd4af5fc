"""Run as a script, alone or under torchrun: `agreement.py FOLDER INPUTS`. Fits without dropout; every fit in a folder of its own.

`NAME-gradients` holds the first step's gradients; `NAME` is the run folder of a fit of ten steps, `NAME-shard` of one with
the base sharded (two processes only). shards.json says what was seen of the sharded bases. Then commands on INPUTS: each has its own
folder, and `NAME.RANK.json` holds its code and what that process said.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)

import train_testbed as bed  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from luthier.errors import LuthierError  # noqa: E402
from luthier.methods import make  # noqa: E402
from luthier.train import run as running  # noqa: E402
from luthier.train.fit import fit  # noqa: E402
from luthier.train.launched import speaks, world  # noqa: E402
from luthier.train.shard import is_part, local_bytes  # noqa: E402

CASES = {  # the last batch of an epoch holds one row: one of two processes has none
    "lora": ("encoder", "lora", {"rank": "2"}, {"micro_batch": 3, "checkpoint_every": 4}),
    "prompts": ("encoder", "prompt_tuning", {"length": "3"}, {}),
    "bitfit": ("encoder", "bitfit", {}, {}),
    "full": ("encoder", "full", {}, {"rate": 1e-3}),
    "lst": ("encoder", "lst", {"reduction": "4"}, {}),
    "xprompt": ("encoder", "xprompt", {"length": "4", "pieces": "4", "scored": "2"}, {}),
    "half": ("encoder", "half_fine_tuning", {"stages": "2"}, {"rate": 1e-3}),
    "writes": ("decoder", "lora", {"rank": "2"}, {"max_new_tokens": 3, "micro_batch": 3}),
}
SHARDED = ("lora", "prompts", "bitfit", "writes")
REFUSED = ("lst", "full")


def job(name, out, **more):
    kind, method, options, settings = CASES[name]
    model = bed.model(kind)
    for module in model.base.modules():  # LST's side layers are copies of the blocks, dropout included
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rows = bed.data("text2text" if kind == "decoder" else "classification", train=45, validation=7, test=5)
    given = {"rate": 1e-2, "batch_size": 11, "steps": 10, "progress": False, **settings, **more}
    return model, lambda: fit(model, rows, make(method, options), out=out, **given)


def keep_first_gradients(path):
    """Write what every trained tensor's gradient is when the first step's processes have been added up."""
    original = running.Run.check_reached

    def check(run):
        original(run)
        if speaks() and not path.exists():
            save_file({n: p.grad.detach().clone() for n, p in run.named.items()}, path)

    running.Run.check_reached = check
    return lambda: setattr(running.Run, "check_reached", original)


def given(command, inputs, out, *more):
    """The arguments of a command on a tiny BERT and its rows."""
    where = ["--model", inputs / "bert", "--data", inputs / "rows.csv", "--batch-size", "16", "--out", out]
    return [str(a) for a in (command, *where, *more)]


def fit_command(inputs, out, *more):
    return given("fit", inputs, out, "--method", "lora", "--set", "rank=2", "--steps", "24", *more)


def compare_command(inputs, out, *more):
    methods = "lora:rank=2,lora:rank=1000,bitfit"  # the second cannot be
    plain = ["--epochs", "1", "--no-grid", "--seeds", "2", "--quiet"]
    return given("compare", inputs, out, "--methods", methods, *plain, *more)


def say(folder, name, arguments):
    """Give a command to the processes that there are."""
    from luthier.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    said = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
    (folder / f"{name}.{os.environ.get('RANK', '0')}.json").write_text(json.dumps(said))


def commands(folder, inputs):
    say(folder, "compare", compare_command(inputs, folder / "compare"))
    if world() > 1:
        say(folder, "fit", fit_command(inputs, folder / "fit"))
        say(folder, "refused", fit_command(inputs, folder / "refused", "--set", "rank=1000"))


def main(folder, inputs):
    folder.mkdir(parents=True, exist_ok=True)
    fits(folder)
    commands(folder, inputs)


def fits(folder):
    for name in CASES:
        undo = keep_first_gradients(folder / f"{name}-gradients")
        _, go = job(name, folder / name, clip=None)
        go()
        undo()
    if world() == 1:
        return
    seen = {}
    for name in SHARDED:
        undo = keep_first_gradients(folder / f"{name}-shard-gradients")
        model, go = job(name, folder / f"{name}-shard", clip=None, shard=True, checkpointing=name == "bitfit")
        names, shapes = (
            list(model.base.state_dict()),
            [tuple(v.shape) for v in model.base.state_dict().values()],
        )
        whole = local_bytes(model.base)
        fitted = go()
        undo()
        state = model.base.state_dict()
        parts = sum(is_part(p) for p in model.base.parameters())
        try:
            fitted.adaptation.card()
            from luthier.host import Adapted

            adapted = Adapted(model.base)
            adapted.attach("main", fitted.adaptation)
            adapted.merge("main")
            refused = ""
        except LuthierError as error:
            refused = str(error)
        adapted.detach()
        plain = [type(m).__name__ for m in model.base.modules() if "forward" in m.__dict__]
        seen[name] = {
            "share": local_bytes(model.base) / whole,
            "parts": parts,
            "same names": list(state) == names and [tuple(v.shape) for v in state.values()] == shapes,
            "merge": refused,
            "left attached": plain,
            "trained of the base": sum(p.requires_grad for p in model.base.parameters()),
        }
    for name in REFUSED:
        try:
            job(name, None, shard=True, steps=1)[1]()
            seen[name] = "was not refused"
        except LuthierError as error:
            seen[name] = str(error)
    for key, rows, batch in (("few rows", 1, 11), ("small batch", 9, 1)):
        data = bed.data("regression", train=rows, validation=0, test=0)
        try:
            fit(bed.model(), data, bed.lora(), batch_size=batch, progress=False)
            seen[key] = "was not refused"
        except LuthierError as error:
            seen[key] = str(error)
    if speaks():
        (folder / "shards.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
