"""What decides a run's result: the settings, and the surroundings in which they hold."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

import luthier
from luthier.errors import OptionError
from luthier.signals.choose import parsed
from luthier.train.fitted import preprocess_card
from luthier.train.processes import Processes


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run's result, apart from model, data and method."""

    seed: int = 0
    epochs: float = 3
    steps: int | None = None
    batch_size: int = 32
    micro_batch: int | None = None
    rate: float | None = None
    head_rate: float = 1e-2
    warmup: float = 0.06
    decay: float | None = None
    clip: float | None = 1.0
    patience: int | None = None
    evaluate_every: int | None = None
    precision: str = "fp32"
    checkpointing: bool = False
    cache: str = "auto"
    class_weights: bool = False
    max_new_tokens: int = 64
    signal: str = "auto"

    def check(self) -> None:
        """Refuse values that mean nothing, naming the option."""
        for name in (
            "epochs",
            "steps",
            "batch_size",
            "micro_batch",
            "rate",
            "head_rate",
            "clip",
            "patience",
            "evaluate_every",
            "max_new_tokens",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise OptionError(f"{name}={value!r}: it must be a number above 0.")
        for name, choices in (
            ("precision", ("fp32", "bf16")),
            ("cache", ("auto", "off")),
        ):
            if getattr(self, name) not in choices:
                raise OptionError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(choices)}.")
        parsed(self.signal)
        if not 0 <= self.warmup < 1:
            raise OptionError(f"warmup={self.warmup!r}: it is a share of the steps, from 0 to below 1.")
        if not 0 <= self.seed < 2**63:
            raise OptionError(f"seed={self.seed!r}: it must be a number from 0 to 2^63 - 1.")


def describe(
    settings: Settings,
    model: Any,
    data: Any,
    method: Any,
    head: Any,
    streams: Mapping[str, Any],
    members: Mapping[str, Any] | None = None,
    companions: Mapping[str, Any] | None = None,
    after: Any = None,
) -> dict[str, Any]:
    """What run.json compares: all that decides the result, by content; where files lie does not."""
    from luthier.host.options import to_card

    return {
        "method": to_card(method),
        "head": to_card(head) if head is not None else None,
        "model": {"fingerprint": model.fingerprint, "preprocess": preprocess_card(model)},
        "members": {name: member.hash() for name, member in (members or {}).items()},
        "data": {"digest": data.digest, "streams": {k: v.digest for k, v in streams.items()}},
        "task": data.task.model_dump(mode="json"),
        **({"companions": {name: one.hash() for name, one in companions.items()}} if companions else {}),
        **({"after": after.hash()} if after is not None else {}),
        **asdict(settings),
    }


def surroundings(model: Any, processes: Processes) -> dict[str, Any]:
    """What may change the last bits of a result though no setting did."""
    import numpy
    import transformers

    device = processes.device
    return {
        "luthier": luthier.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} {torch.backends.cpu.get_cpu_capability()}",
        "processes": processes.world,
        **({"sharded": True} if processes.sharded else {}),
        "dtype": str(getattr(model, "dtype", "")),
    }
