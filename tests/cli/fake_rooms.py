"""Stand-ins for the rooms below the command line, so that its tests are about the command line."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

TASK = SimpleNamespace(
    attributes=(),
    covariates=(),
    kind="classification",
    modality="text",
    labels=("no", "=1+1", "[/b]\x1b[31m"),
    input="text",
    label="label",
)


class Rows:
    attributes = covariates = histories = None

    def __init__(self, inputs: list[Any]):
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def select(self, indices: Any) -> Rows:
        return Rows([self.inputs[i] for i in indices])


class Fitted:
    def __init__(self, task: Any = TASK):
        self.task = task
        self.metrics = {"test": {"accuracy": 0.75, "log_loss": float("nan")}, "parameters": 1234}

    def predict_proba(self, inputs: Any, **_: Any) -> np.ndarray:
        rows = np.array([[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]], np.float32)
        return rows[[len(str(x)) % 2 for x in inputs]]

    def predict(self, inputs: Any, **_: Any) -> Any:
        return [float(len(x)) for x in inputs]

    def score(self, rows: Rows, **_: Any) -> dict[str, float]:
        return {"accuracy": len(rows) / 10}


class Rooms:
    """What the fake rooms were called with, by name."""

    def __init__(self, monkeypatch: Any, task: Any = TASK):
        self.calls: dict[str, tuple[tuple, dict]] = {}
        self.rows = Rows(["a", "bb", "ccc"])
        self.fails: BaseException | None = None
        results = {
            "luthier.data.load": {"load_data": "data", "load_split": self.rows},
            "luthier.models.load": {"load": "model"},
            "luthier.train.fit": {"fit": Fitted(task)},
            "luthier.train.fitted": {"load_fitted": Fitted(task)},
        }
        for name, functions in results.items():
            module = ModuleType(name)
            for function, result in functions.items():
                setattr(module, function, self._recorder(function, result))
            monkeypatch.setitem(sys.modules, name, module)

    def _recorder(self, name: str, result: Any) -> Any:
        def called(*args: Any, **settings: Any) -> Any:
            self.calls[name] = (args, settings)
            if self.fails is not None:
                raise self.fails
            return result

        return called
