"""Peak memory of training: predicted before the first step, measured while it runs, and advice when there is too little.

Both count bytes of live tensors, as the CUDA allocator does. What the C library of a CPU process keeps beside them depends on the
order in which batches of different widths came and is between nothing and 0.7 of the activations (seen); `resident` says.

Prediction: forward and backward on two and on four rows of the heaviest batch's longest kind, every tensor counted as it comes
and goes. At every moment what grows with the rows grows linearly, so two sizes give the line; weights and optimiser are added.
Measurement: the same count in the step that has the heaviest batch (known beforehand, since batches are functions of the step).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from luthier.errors import RunError
from luthier.host.places.factored import STANDS_FOR

ADVICE = (
    "lower --micro-batch (now {micro}), add --checkpointing, use --precision bf16, cut the texts (max_length), "
    "or choose a method that keeps few activations (lst)"
)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of distinct storages: tied weights count once."""
    seen = {}
    for t in tensors:
        t = t.to_local() if hasattr(t, "to_local") else t  # of a sharded base: what this process holds
        if t.device.type != "meta":
            storage = t.untyped_storage()
            seen[storage.data_ptr() or id(storage)] = storage.nbytes()
    return sum(seen.values())


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in an operation's arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from tensors_in(v)
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside the mode that are alive: now, at most, and at every allocation."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.course: list[int] = []
        self.held: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        made = [t.untyped_storage() for t in tensors_in(out) if t.device.type != "meta"]
        if made := [s for s in made if s._cdata not in self.held]:
            known = {t.untyped_storage()._cdata for t in tensors_in((args, kwargs))}
            for storage in made:
                if storage._cdata not in known:
                    self._count(storage)
        return out

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self.held:  # two outputs share it
            return
        size = storage.nbytes()
        self.held[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        self.course.append(self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self.held.pop(key, 0)


@dataclass(frozen=True)
class Prediction:
    """Bytes, by what they are for."""

    weights: int
    trained: int
    gradients: int
    optimiser: int
    activations: int

    @property
    def peak(self) -> int:
        return self.weights + self.trained + self.gradients + self.optimiser + self.activations


def predict(run: Any, probe: tuple[int, int] = (2, 4)) -> Prediction:
    """The peak of the phase that the run stands in. Leaves no gradient and no random state behind."""
    _, rows, longest = run.batches.heaviest(run.stream, run.total, run.steps[run.index])
    trained = tensor_bytes(run.named.values())
    others = tensor_bytes(p for a in run.adapted.adaptations.values() for p in a.parameters()) - trained
    weights = tensor_bytes([*run.adapted.base.parameters(), *run.adapted.base.buffers()])
    small, large = (min(p, rows) for p in probe)
    with _undisturbed(run):
        first = _course(run, longest, small, rows)
        second = _course(run, longest, large, rows) if large > small else first
    highest = extrapolated(first, second, (rows - large) / max(1, large - small))
    gradients = 0 if getattr(run.optimiser, "forward_only", False) else trained
    # at the end of the backward pass all gradients are there, which `highest` has counted
    activations = max(0, highest - gradients)
    return Prediction(
        weights, trained + others, gradients, optimiser_bytes(run.optimiser, trained), activations
    )


def extrapolated(first: list[int], second: list[int], times: float) -> int:
    """The highest of second + times * (second - first), moment by moment.

    Moments, not peaks: with few rows the peak is where gradients are complete, with many where activations are.
    """
    if len(first) != len(second):  # the course depends on the rows: what is known of the peaks must do
        first, second = [max(first, default=0)], [max(second, default=0)]
    return int(max((b + times * (b - a) for a, b in zip(first, second)), default=0))


def _course(run: Any, row: int, times: int, meant: int) -> list[int]:
    """Bytes alive at every allocation of one forward and backward of one row repeated, for a batch of `meant` rows."""
    batch = run.batches.repeated(run.stream, row, times)
    forward_only = getattr(run.optimiser, "forward_only", False)
    token = STANDS_FOR.set(meant / times)
    try:
        with LiveBytes() as live, torch.set_grad_enabled(not forward_only):
            loss = run.loss(batch)
            if not forward_only:
                loss.backward()
            del loss
    finally:
        STANDS_FOR.reset(token)
    for t in run.named.values():
        t.grad = None
    return live.course


class Count:
    """The peak of a stretch of work in bytes, known at its end."""

    peak = 0


@contextmanager
def counted(device: Any) -> Iterator[Count]:
    """Count the bytes of tensors made inside that are alive at the worst moment."""
    count = Count()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield count
        torch.cuda.synchronize(device)
        count.peak = torch.cuda.max_memory_allocated(device) - before
    else:
        with LiveBytes() as live:
            yield count
        count.peak = live.peak


def standing(run: Any) -> int:
    """Bytes that a run holds between two steps: weights, adaptations, optimiser, what its plan remembers."""
    state = run.optimiser.state.values() if run.optimiser is not None else ()
    moments = [v for values in state for v in values.values() if torch.is_tensor(v)]
    return tensor_bytes([*run.adapted.parameters(), *run.adapted.buffers(), *moments, *run.extra.values()])


@contextmanager
def _undisturbed(run: Any):
    """Random states are put back: a trial must not change the run."""
    state = run.rng.get_state()
    device = torch.device(run.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    run.rng.set_state(state)


def optimiser_bytes(optimiser: torch.optim.Optimizer | None, trained: int) -> int:
    """Two moments for the Adam family, one for SGD with momentum, none otherwise."""
    if optimiser is None or getattr(optimiser, "forward_only", False):
        return 0
    group = optimiser.param_groups[0]
    moments = 2 if "betas" in group else int(bool(group.get("momentum")))
    return moments * trained


class Resident:
    """The high-water mark of the resident set of this process while it trains, above what was resident before.

    Linux lets a process reset the mark; elsewhere a thread looks every 10 ms. Nothing on a GPU.
    """

    def __init__(self, device: Any):
        self.off = torch.device(device).type == "cuda"
        self.bytes = self._before = 0
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def start(self) -> None:
        if self.off:
            return
        give_back_freed()
        self._before = resident()
        if not reset_high_water():
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()

    def read(self) -> int:
        """Bytes until now."""
        if not self.off and self._thread is None:
            self.bytes = max(self.bytes, status_bytes("VmHWM") - self._before)
        return self.bytes

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside (an evaluation, with the libraries that it loads) is not training's."""
        self.read()
        before = resident()
        yield
        self._before += resident() - before
        if not self.off and self._thread is None:
            reset_high_water()

    def stop(self) -> int:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        return self.read()

    def _look(self) -> None:
        while not self._stop.wait(0.01):
            self.bytes = max(self.bytes, resident() - self._before)


def resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def status_bytes(key: str) -> int:
    """A field of /proc/self/status that is given in kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0


def give_back_freed() -> None:
    """Let the C library return what is free already: else training would fill it unseen."""
    import ctypes

    with suppress(OSError, AttributeError, TypeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def reset_high_water() -> bool:
    """Whether the high-water mark of this process could be set back to what is resident now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return status_bytes("VmHWM") > 0
    except OSError:
        return False


@contextmanager
def advised(micro: int, predicted: int = 0):
    """Turn running out of memory into a RunError that says what to do."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _out_of_memory(micro, predicted) from error
    except RuntimeError as error:  # the CPU allocator of PyTorch raises no class of its own
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise _out_of_memory(micro, predicted) from error


def _out_of_memory(micro: int, predicted: int) -> RunError:
    about = f" (predicted peak: {human(predicted)})" if predicted else ""
    return RunError(f"Memory ran out{about}: {ADVICE.format(micro=micro)}.")


def human(count: float) -> str:
    """Bytes for people: 1.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def available(device: Any) -> int:
    """Bytes that a run may still take on a device."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)
