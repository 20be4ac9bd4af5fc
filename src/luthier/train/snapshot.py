"""A run as JSON and tensors, and back: everything that decides the steps to come."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.errors import RunError
from luthier.signals.optimisers import load_state, state_of
from luthier.train.run import Run

PLAIN = ("index", "step", "total", "entered", "stopped")


def take(
    run: Run, random_of: Sequence[Mapping[str, Tensor]] = ()
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(state, tensors) of a run between two steps. Tensors are the live ones: write them before going on.

    random_of: the random states of every process, by rank; none: this one is alone.
    """
    tensors: dict[str, Tensor] = {}
    for rank, states in enumerate(random_of or [random_states(run)]):
        tensors |= {f"{random_of_rank(rank)}{k}": v for k, v in states.items()}
    cards = {}
    for name, adaptation in run.adapted.adaptations.items():
        cards[name] = adaptation.card()
        tensors |= {f"adaptation/{name}/{k}": v for k, v in adaptation.state(everything=True).items()}
    tensors |= {f"extra/{k}": v for k, v in run.extra.items()}
    optimiser: dict[str, Any] | None = None
    if run.optimiser is not None:
        numbers: dict[str, dict[str, Any]] = {}
        for name, values in state_of(run.optimiser, run.named).items():
            numbers[name] = {}
            for key, value in values.items():
                if torch.is_tensor(value):
                    tensors[f"optimiser/{key}/{name}"] = value
                else:
                    numbers[name][key] = as_json(value, f"{type(run.optimiser).__name__}.{key}")
        groups = [
            {k: v for k, v in g.items() if is_json(v) and k not in ("params", "param_names")}
            for g in run.optimiser.param_groups
        ]
        optimiser = {"numbers": numbers, "groups": groups}
    state = {k: getattr(run, k) for k in PLAIN}
    state |= {"state": as_json(run.state, "run.state"), "adaptations": cards, "optimiser": optimiser}
    return state, {k: v.detach() for k, v in tensors.items()}


def put_back(run: Run, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Make `run`, freshly built from the same settings, stand where the one of the snapshot stood."""
    from luthier.host import Adaptation

    for name in list(run.adapted.adaptations):
        run.adapted.detach(name)
    for name, card in state["adaptations"].items():
        adaptation = Adaptation.from_card(card, run.adapted.base)
        adaptation.load_state(under(tensors, f"adaptation/{name}/"), everything=True)
        run.adapted.attach(name, adaptation.to(run.device))
    for key in PLAIN:
        setattr(run, key, state[key])
    run.state = state["state"]
    run.extra = {k: v.to(run.device) for k, v in under(tensors, "extra/").items()}
    if run.entered and run.index < len(run.phases):
        run.reset_optimiser()
        if run.optimiser is not None and state["optimiser"] is not None:
            _fill_optimiser(run, state["optimiser"], under(tensors, "optimiser/"))
    mine = under(tensors, random_of_rank(run.batches.rank))
    if mine:
        set_random_states(run, mine)
    else:  # resumed by more processes than wrote it: dropout goes on from this one's own seed
        run.rng.set_state(tensors["random/run"])


def random_of_rank(rank: int) -> str:
    return f"random@{rank}/" if rank else "random/"


def _fill_optimiser(run: Run, saved: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    assert run.optimiser is not None
    merged: dict[str, dict[str, Any]] = {name: dict(values) for name, values in saved["numbers"].items()}
    for path, value in tensors.items():
        key, name = path.split("/", 1)
        merged.setdefault(name, {})[key] = value
    load_state(run.optimiser, run.named, merged)
    for group, values in zip(run.optimiser.param_groups, saved["groups"]):
        for key, value in values.items():
            group[key] = tuple(value) if isinstance(group.get(key), tuple) else value


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def as_json(value: Any, what: str) -> Any:
    if not is_json(value):
        raise RunError(
            f"{what} holds a {type(value).__name__}, which a checkpoint cannot: keep numbers, strings, lists and dicts, tensors in run.extra."
        )
    return value


def random_states(run: Run) -> dict[str, Tensor]:
    """States of every generator that a step may draw from."""
    _, keys, position, *_ = np.random.get_state()
    _, internal, _ = random.getstate()
    states = {
        "run": run.rng.get_state(),
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*np.asarray(keys).tolist(), int(position)], dtype=torch.int64),  # type: ignore[arg-type]
        "python": torch.tensor(internal, dtype=torch.int64),
    }
    if torch.device(run.device).type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(run.device)
    return states


def set_random_states(run: Run, states: Mapping[str, Tensor]) -> None:
    run.rng.set_state(states["run"])
    torch.set_rng_state(states["torch"])
    *keys, position = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, 0, 0.0))
    random.setstate((3, tuple(states["python"].tolist()), None))
    if "cuda" in states and torch.device(run.device).type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], run.device)


@contextmanager
def own_randomness(seed: int, device: Any = "cpu"):
    """Seed the process-wide generators for a run, and give the caller's back afterwards."""
    kept = np.random.get_state(), random.getstate()
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(kept[0])
        random.setstate(kept[1])
