"""The quality of a family of methods on real data, each at its own best learning rate, beside LoRA, a linear probe and a control.

python bench/quality.py DATA --family prompts --set trec [--seeds 5] [--work FOLDER]    DATA: the folder that holds trec/, sst2/, ...

prompts: every soft prompt and prefix that one task trains, on MiniLM; asked is that none is below a linear probe of the frozen model and
that the best is within one point of LoRA. weights: every change of weights, scaling and adapter with no more numbers than a LoRA of rank 8
on queries and values has, the control a LoRA of as many numbers on layers that are drawn; what is stored says who is above LoRA.
One set at a time: trec, sst2, mr (first 2,000 rows), banking77 (4,000), rte, cb (the 32 of FewGLUE) on MiniLM; digits and cifar10 on the
ViT testbed. `luthier.compare` in --work: what was interrupted goes on there, and report.html shows all of it.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timing

PROMPTS = (
    "prompt_tuning", "deep_prompt", "p_tuning_v2", "ntk_attention", "dpt", "dept", "ept", "residual_prompt", "xpe", "embedding_shift",
    "near_text", "iapt", "id_spam", "xprompt", "skip",
)  # fmt: skip
WEIGHTS = (
    "rslora", "lora_plus", "lora_pro", "dora", "pissa", "soma", "corda", "eva", "adalora", "pego", "selective_lora", "petalface", "chain_of_lora",
    "loha", "lokr", "soka:largest=3", "diffusekrona", "vera", "randlora", "fourierft", "waveft", "oft", "boft", "ia3", "bitfit", "layer_norm",
    "sparse_entries", "sensitivity_tuning", "adapter", "parallel_adapter", "compacter", "loreft", "direft", "lofit", "sct",
)  # fmt: skip
RANK, DRAWN = 8, 12
"""Of the LoRA that sets the budget, and at how many layers the control stands."""
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
SETS = {"trec": 2000, "sst2": 2000, "mr": 2000, "banking77": 4000, "rte": 32, "cb": 32, "digits": 1000, "cifar10": 2000}
"""Rows that are trained on."""
IMAGES = ("digits", "cifar10")
EPOCHS = {"rte": 30.0, "cb": 30.0}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts(folder: Path, name: str) -> Any:
    """Rows to train on, of which a fifth choose the rate, and the test rows."""
    import luthier as lt

    if name in ("rte", "cb"):
        root = folder / "fewglue_32dev"
        parts = [lines(root / f"{name.upper()}_{part}.jsonl") for part in ("train", "dev32", "val")]
        train, held, test = (
            {k: [str(r[k]) for r in rows] for k in ("premise", "hypothesis", "label")} for rows in parts
        )
        both = {k: train[k] + held[k] for k in train}
        return lt.data(both, test=test, input="premise,hypothesis", label="label", split=(0.5, 0.5, 0.0), name=name)
    train_rows = lines(folder / name / "train.jsonl")
    if name == "banking77":  # it is sorted by its labels
        random.Random(0).shuffle(train_rows)
    columns = [
        {"text": [r["text"] for r in rows], "label": [r["label_name"] for r in rows]}
        for rows in (train_rows[: SETS[name]], lines(folder / name / "test.jsonl"))
    ]
    return lt.data(columns[0], test=columns[1], split=(0.8, 0.2, 0.0), name=name)


def images(folder: Path, name: str) -> Any:
    import numpy as np
    from PIL import Image

    import luthier as lt

    if name == "digits":
        return lt.data("builtin:digits")

    def read(part: str, limit: int) -> tuple[Any, Any]:
        with np.load(folder / name / f"{part}.npz") as z:
            packed, offsets, y = z["jpeg"], z["offsets"], z["y"]
        at = random.Random(0).sample(range(len(y)), limit)
        made = [Image.open(io.BytesIO(packed[offsets[i] : offsets[i + 1]].tobytes())) for i in at]
        return np.stack([np.asarray(image.convert("RGB")) for image in made]), y[at]

    (x, y), test = read("train", SETS[name]), read("test", 1000)
    return lt.data((x, y), test=test, split=(0.8, 0.2, 0.0), name=name)


def arms(family: str, model: Any) -> tuple[list[Any], str, bool]:
    """(methods, the budget's numbers, whether each is as large as that allows). The first is LoRA."""
    import luthier as lt
    from luthier.host.structure import structure_of

    lora = lt.methods.LoRA(rank=RANK)
    if family == "prompts":
        return [lora, *PROMPTS], "", False
    from luthier.host.sizing import count

    linear = [s for s in structure_of(model.base).sites if s.role.startswith(("attention.", "mlp.")) and s.out_features]
    at = random.Random(0).sample(linear, min(DRAWN, len(linear)))
    control = lt.methods.LoRA(rank=RANK, targets=" | ".join(f"{s.role}[{s.layer}]" for s in at))
    return [lora, control, *WEIGHTS], f"params={count(lora, model.base)}", True


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    given = timing.arguments(
        __doc__, argv, data={"positional": True, "type": Path}, family={"choices": ("prompts", "weights"), "default": "prompts"},
        set={"choices": tuple(SETS), "default": "trec"}, seeds={"type": int, "default": 3}, epochs={"type": float, "default": 3.0},
        work={"type": Path, "default": Path("out/quality")}, only={"help": "these methods alone, joined by commas"},
    )  # fmt: skip
    import luthier as lt
    from luthier.compare.evidence import metrics_of
    from luthier.compare.grid import at_end
    from luthier.compare.intervals import summarise

    model = lt.load("builtin:vit" if given.set in IMAGES else "builtin:minilm", device="cpu")
    data = (images if given.set in IMAGES else texts)(given.data, given.set)
    methods, limits, sized = arms(given.family, model)
    if given.only:
        methods = [methods[0], *given.only.split(",")]
    if given.smoke:
        data, limits = data.limit(train=40, validation=20, test=20), ",".join([*filter(None, [limits]), "steps=2"])
    made = lt.compare(
        model, data, methods, budget=limits, sized=sized, seeds=2 if given.smoke else given.seeds, epochs=EPOCHS.get(given.set, given.epochs),
        grid=(0.3, 1.0) if given.smoke else FACTORS, out=given.work / f"{given.family}-{given.set}", progress=True,
    )  # fmt: skip
    done = [a for a in made.results["arms"] if a["status"] == "done"]
    lora = next(a["name"] for a in done if a["name"].startswith("lora"))
    beside = summarise(metrics_of(made.results, made.folder), made.results["metric"], reference=lora)
    mean = {n: s["metric"] for n, s in beside.items()}
    figures = []
    for arm in done:
        name, over = arm["name"], beside[arm["name"]]["delta_vs_reference"]
        scores = [r["test"][made.results["metric"]] for r in arm["runs"]]
        numbers = next((r["parameters"] for r in arm["runs"] if r.get("parameters") is not None), None)
        about = {"score": mean[name], "seeds": scores, "over_lora": over, "rate": arm["rate"], "rate_at_end": at_end(arm), "parameters": numbers}
        limit, short = (0.0, mean["probe"] - mean[name]) if given.family == "prompts" else (1.0, mean[lora] - mean[name])
        if arm["kind"] == "method" and name != lora:
            what = "the linear probe" if given.family == "prompts" else "LoRA"
            figures.append(timing.figure(f"{given.set}: {what} less {arm['label']}", short, limit, made.results["metric"], runs=about))
        else:
            figures.append(timing.figure(f"{given.set}: errors of {arm['label']}", 1 - mean[name], 1.0, "share", runs=about))
    if given.family == "prompts":
        best = max((a["name"] for a in done if a["kind"] == "method" and a["name"] != lora), key=mean.__getitem__)
        figures.append(timing.figure(f"{given.set}: LoRA less the best prompt, {best}", mean[lora] - mean[best], 0.01, made.results["metric"]))
    for arm in made.results["arms"]:
        if arm["status"] != "done":
            print(f"{arm['label']}: {arm['status']}: {arm['error']}", flush=True)
    return timing.write(f"quality_{given.family}_{given.set}", figures, given)


if __name__ == "__main__":
    main()
