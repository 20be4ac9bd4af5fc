"""The quality of a family of methods on real data, each at its own best learning rate, beside LoRA, a linear probe and a control.

python studies/quality.py DATA --family prompts --set trec [--seeds 5] [--work FOLDER]    DATA: the folder that holds trec/, sst2/, ...

prompts: every soft prompt and prefix that one task trains, on MiniLM; asked is that none is below a linear probe of the frozen model and
that the best is within one point of LoRA. weights: every change of weights, scaling and adapter with no more numbers than a LoRA of rank 8
on queries and values has, the control a LoRA of as many numbers on layers that are drawn; what is stored says who is above LoRA.
One set at a time: trec, sst2, mr (first 2,000 rows), banking77 (4,000), rte, cb (the 32 of FewGLUE) on MiniLM; digits and cifar10 on the
ViT testbed. `luthier.compare` in --work: what was interrupted goes on there, and report.html shows all of it. Hours on two cores. What is found
goes to results/: every arm's scores by seed, its rate, and its paired difference to LoRA.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--family", choices=("prompts", "weights"), default="prompts")
    parser.add_argument("--set", choices=tuple(SETS), default="trec")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--only", help="these methods alone, joined by commas")
    parser.add_argument("--work", type=Path, default=Path("out/quality"), help="where the comparisons are kept")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="tiny: only to see that it runs; nothing is stored")
    given = parser.parse_args(argv)
    import torch

    import luthier as lt

    torch.set_num_threads(given.threads)
    model = lt.load("builtin:vit" if given.set in IMAGES else "builtin:minilm", device="cpu")
    data = (images if given.set in IMAGES else texts)(given.data, given.set)
    methods, limits, sized = arms(given.family, model)
    if given.only:
        methods = [methods[0], *given.only.split(",")]
    if given.smoke:
        data, limits = data.limit(train=40, validation=20, test=20), ",".join([*filter(None, [limits]), "steps=2"])
    made = lt.compare(
        model, data, methods, budget=limits, sized=sized, seeds=2 if given.smoke else given.seeds, epochs=EPOCHS.get(given.set, given.epochs),
        grid=(0.3, 1.0) if given.smoke else FACTORS, out=given.work / f"{given.family}-{given.set}",
    )  # fmt: skip
    found = told(made, given.family, given.set)
    print(json.dumps(found["checks"], indent=1))
    if not given.smoke and not given.only:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{given.family}_{given.set}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def told(made: Any, family: str, name: str) -> dict[str, Any]:
    """What is stored of a comparison. Checks of prompts: none below a linear probe, the best within a point of LoRA."""
    from luthier.compare.environment import machine, versions
    from luthier.compare.evidence import metrics_of
    from luthier.compare.grid import at_end
    from luthier.compare.intervals import summarise

    results = made.results
    metric, done = results["metric"], [a for a in results["arms"] if a["status"] == "done"]
    lora = next(a["name"] for a in done if a["name"].startswith("lora"))
    beside = summarise(metrics_of(results, made.folder), metric, reference=lora)
    out = []
    for arm in results["arms"]:
        entry = {"arm": arm["label"], "kind": arm["kind"], "status": arm["status"], "error": arm["error"]}
        if arm["name"] in beside:
            s = beside[arm["name"]]
            entry |= {"score": s["metric"], "low": s["low"], "high": s["high"], "over_lora": s["delta_vs_reference"]}
            entry |= {"seeds": [r["test"][metric] for r in arm["runs"]], "rate": arm["rate"], "rate_at_end": at_end(arm)}
            entry |= {k: next((r[k] for r in arm["runs"] if r.get(k) is not None), None) for k in ("parameters", "parameters_head")}
        out.append(entry)
    score = {e["arm"]: e["score"] for e in out if "score" in e}
    mine = {e["arm"]: e["score"] for e in out if "score" in e and e["kind"] == "method" and not e["arm"].startswith("lora")}
    checks = []
    if family == "prompts":
        probe, of_lora = score["Linear probe"], next(v for k, v in score.items() if k.startswith("lora"))
        worst, best = min(mine, key=mine.__getitem__), max(mine, key=mine.__getitem__)
        checks += [
            {"what": f"{worst}, the last, less the linear probe", "figure": mine[worst] - probe, "asked": "at least 0", "holds": mine[worst] >= probe},
            {"what": f"LoRA less {best}, the best", "figure": of_lora - mine[best], "asked": "at most 0.01", "holds": of_lora - mine[best] <= 0.01},
        ]  # fmt: skip
    return {
        "family": family, "set": name, "model": results["model"], "metric": metric, "rows": results["data"]["rows"], "budget": results["budget"],
        "seeds": results["seeds"], "grid": results["grid"], "arms": out, "checks": checks, "versions": versions(), "machine": machine(None),
    }  # fmt: skip


if __name__ == "__main__":
    main()
