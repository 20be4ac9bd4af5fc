"""How far training in lower precision leaves the path of training in full precision (S195).

divergence = mean over steps of |loss_bf16 - loss_fp32|, both runs from one seed, on the same batches
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from luthier.errors import OptionError


@dataclass(frozen=True)
class Divergence:
    """Losses of two runs step by step, and how far they are apart."""

    full: tuple[float, ...]
    """Losses in float32."""
    lower: tuple[float, ...]
    """Losses in bfloat16 (autocast; what trains stays float32)."""

    @property
    def mean(self) -> float:
        """Mean |difference| over the steps; infinite where a loss is not finite."""
        gaps = [abs(a - b) for a, b in zip(self.full, self.lower, strict=True)]
        return fmean(gaps) if all(map(math.isfinite, gaps)) else math.inf

    @property
    def relative(self) -> float:
        """The mean as a share of the mean loss in float32."""
        return self.mean / fmean(self.full)


def precision_divergence(
    model: Any, data: Any, method: Any, *, steps: int = 200, **settings: Any
) -> Divergence:
    """Train twice, in fp32 and in bf16, from the same seed and on the same batches; settings go to `luthier.fit`.

    Raises OptionError where `precision` is among the settings.
    """
    if {"precision", "out"} & settings.keys():
        raise OptionError(
            "precision_divergence trains in both precisions, in folders of its own: leave out precision and out."
        )
    return Divergence(
        *(losses(model, data, method, steps=steps, precision=p, **settings) for p in ("fp32", "bf16"))
    )


def losses(model: Any, data: Any, method: Any, **settings: Any) -> tuple[float, ...]:
    """The loss of every step of one fit."""
    from luthier.train.fit import fit

    settings = {"evaluate_every": 1_000_000, "progress": False, **settings}
    with tempfile.TemporaryDirectory() as folder:
        fit(model, data, method, out=f"{folder}/run", **settings)
        text = Path(folder, "run", "log.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    return tuple(float(line["loss"]) for line in lines if "loss" in line)
