"""Classifier and Regressor: adaptations as scikit-learn estimators.

    Classifier("builtin:minilm", method="lora", epochs=3).fit(texts, labels).predict(more)

This module imports scikit-learn; `luthier.Classifier` loads it on first use. PyTorch loads with `fit`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.preprocessing import LabelEncoder
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from luthier.errors import DataError, OptionError

TEXT_MODEL, TEXT_METHOD = "builtin:minilm", "lora"
"""What is adapted, and how, when rows are texts and nothing else is said."""
NUMBERS_METHOD, NUMBERS_RATE = "full", 1e-2
"""For rows of numbers without a model: all of a small network with random weights; it has nothing to lose."""
WIDTH = 64
BATCH = 64
"""Rows of numbers are predicted so many at once, always."""


class _Adapting(BaseEstimator):
    """What both estimators share.

    model: builtin:NAME, a folder, a hub name, or a torch.nn.Module from (rows, features) to hidden states.
        None: the embedded sentence model for texts; for numbers, a small network with random weights.
    method: a name or an instance of `luthier.methods`; settings: its options, when it is a name.
    rate, head_rate: learning rates of the method and of the output head; None: their own.
    validation: the share of rows kept apart to choose the best epoch; patience: epochs without a better one.
    seed: of everything random: a second `fit` on the same data gives the same model.
    """

    def __init__(
        self,
        model: Any = None,
        method: Any = None,
        *,
        settings: Mapping[str, Any] | None = None,
        epochs: float = 3,
        steps: int | None = None,
        batch_size: int = 32,
        rate: float | None = None,
        head_rate: float | None = None,
        validation: float = 0.0,
        patience: int | None = None,
        seed: int = 0,
        device: str = "auto",
        dtype: str = "auto",
        progress: bool = False,
    ):
        self.model = model
        self.method = method
        self.settings = settings
        self.epochs = epochs
        self.steps = steps
        self.batch_size = batch_size
        self.rate = rate
        self.head_rate = head_rate
        self.validation = validation
        self.patience = patience
        self.seed = seed
        self.device = device
        self.dtype = dtype
        self.progress = progress

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        return tags

    def _train(
        self, inputs: Any, modality: str, kind: str, labels: tuple[str, ...], targets: np.ndarray, **more: Any
    ) -> None:
        from luthier.data.split import Data, Split
        from luthier.data.task import Task
        from luthier.models.load import load
        from luthier.train.fit import fit

        task = Task(
            kind=kind,  # type: ignore[arg-type]
            modality=modality,  # type: ignore[arg-type]
            labels=labels,
            input=("x", "x2") if modality == "pair" else "x",
            label="y",
        )
        train, validation = self._divided(Split(inputs, targets))
        numbers = modality == "array"
        source = self._numbers_model(inputs) if numbers else (self.model or TEXT_MODEL)
        rate = self.rate
        if rate is None and numbers and self.model is None and self.method is None:
            rate = NUMBERS_RATE
        wanted: dict[str, Any] = {
            "rate": rate,
            "head_rate": self.head_rate,
            "steps": self.steps,
            "patience": self.patience,
        }
        self.fitted_ = fit(
            load(source, device=self.device, dtype=self.dtype),
            Data(train, validation, None, task, type(self).__name__),
            self._method(numbers),
            seed=self.seed,
            epochs=self.epochs,
            batch_size=self.batch_size,
            progress=self.progress,
            **{k: v for k, v in wanted.items() if v is not None},
            **more,
        )

    def _method(self, numbers: bool) -> Any:
        chosen = self.method
        if chosen is None:
            chosen = NUMBERS_METHOD if numbers and self.model is None else TEXT_METHOD
        if isinstance(chosen, str):
            from luthier.methods import make

            return make(chosen, self.settings)
        if self.settings:
            raise OptionError(
                "settings are for a method given by name; this one is an instance, which has its own."
            )
        return chosen

    def _numbers_model(self, inputs: np.ndarray) -> Any:
        if isinstance(self.model, str):
            raise OptionError(
                f"The rows are numbers, which {self.model!r} does not read: "
                "give texts, a torch.nn.Module, or model=None."
            )
        return self.model if self.model is not None else random_features(inputs, self.seed)

    def _divided(self, rows: Any) -> tuple[Any, Any]:
        """(train, validation) rows; validation is None unless a share was asked for."""
        if not 0 <= self.validation < 1:
            raise OptionError(
                f"validation={self.validation!r}: it is a share of the rows, from 0 to below 1."
            )
        count = int(len(rows) * self.validation)
        if not count:
            return rows, None
        order = np.random.default_rng(self.seed).permutation(len(rows))
        return rows.select(np.sort(order[count:])), rows.select(np.sort(order[:count]))

    def _answers(self, X: Any) -> np.ndarray:
        """Probabilities (rows, classes) or values (rows,) for rows like those of `fit`."""
        check_is_fitted(self, "fitted_")
        answer = self.fitted_.predict_proba if self.fitted_.task.labels else self.fitted_.predict
        modality = self.fitted_.task.modality
        found = as_texts(X)
        if modality == "array":
            rows = validate_data(self, X, reset=False, dtype=np.float32)
            # Matrix products differ in their last bit with the number of rows: whole batches make them equal.
            whole = np.zeros((-(-len(rows) // BATCH) * BATCH, rows.shape[1]), np.float32)
            whole[: len(rows)] = rows
            return np.asarray(answer(whole, batch_size=BATCH), np.float64)[: len(rows)]
        if found is None or found[1] != modality:
            raise DataError(
                f"This estimator was fitted on rows that are a {modality}; these are something else."
            )
        return np.asarray(answer(found[0]), np.float64)

    def _checked(self, X: Any, y: Any, **options: Any) -> tuple[Any, str, Any]:
        """(inputs, modality, targets) of the rows to fit."""
        found = as_texts(X)
        if found is None:
            X, y = validate_data(self, X, y, dtype=np.float32, **options)
            return X, "array", y
        if y is None:
            raise DataError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
        y = column_or_1d(y, warn=True)
        if len(found[0]) != len(y):
            raise DataError(f"There are {len(found[0])} rows and {len(y)} targets.")
        return *found, y


class Classifier(ClassifierMixin, _Adapting):
    """A classifier of texts, of pairs of texts, or of rows of numbers.

    class_weights: rare classes count more. signal: "choices" or "t_few" ranks the labels' texts, with a model that writes;
    "infoprompt" adds InfoPrompt's terms to a soft prompt's loss.
    Fitted: `classes_`, `fitted_` (what `luthier.fit` returns: `.adaptation`, `.save(folder)`, `.metrics`).
    """

    __doc__ += _Adapting.__doc__ or ""  # type: ignore[operator]

    def __init__(
        self,
        model: Any = None,
        method: Any = None,
        *,
        settings: Mapping[str, Any] | None = None,
        epochs: float = 3,
        steps: int | None = None,
        batch_size: int = 32,
        rate: float | None = None,
        head_rate: float | None = None,
        validation: float = 0.0,
        patience: int | None = None,
        class_weights: bool = False,
        signal: str = "auto",
        seed: int = 0,
        device: str = "auto",
        dtype: str = "auto",
        progress: bool = False,
    ):
        super().__init__(
            model,
            method,
            settings=settings,
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            rate=rate,
            head_rate=head_rate,
            validation=validation,
            patience=patience,
            seed=seed,
            device=device,
            dtype=dtype,
            progress=progress,
        )
        self.class_weights = class_weights
        self.signal = signal

    def fit(self, X: Any, y: Any) -> Classifier:
        """X: texts (rows,), pairs of texts (rows, 2), or numbers (rows, features). y: (rows,), any labels."""
        X, modality, y = self._checked(X, y)
        check_classification_targets(y)
        encoder = LabelEncoder().fit(y)
        if len(encoder.classes_) < 2:
            raise DataError(f"There is one class only ({encoder.classes_[0]!r}): nothing to tell apart.")
        names = tuple(str(c) for c in encoder.classes_)
        targets = encoder.transform(y).astype(np.int64)
        self._train(
            X,
            modality,
            "classification",
            names,
            targets,
            class_weights=self.class_weights,
            signal=self.signal,
        )
        self.classes_ = encoder.classes_
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """(rows, classes), in the order of `classes_`."""
        found = self._answers(X)
        return found / found.sum(1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """(rows,) of `classes_`."""
        likeliest = self.predict_proba(X).argmax(1)
        return self.classes_[likeliest]


class Regressor(RegressorMixin, _Adapting):
    """A regressor of texts, of pairs of texts, or of rows of numbers.

    Fitted: `fitted_` (what `luthier.fit` returns: `.adaptation`, `.save(folder)`, `.metrics`).
    """

    __doc__ += _Adapting.__doc__ or ""  # type: ignore[operator]

    def fit(self, X: Any, y: Any) -> Regressor:
        """X: texts (rows,), pairs (rows, 2) of texts, or numbers (rows, features). y: (rows,) of numbers."""
        X, modality, y = self._checked(X, y, y_numeric=True)
        if len(y) < 2:
            raise DataError("There is 1 sample (n_samples=1): a regressor needs rows with different targets.")
        self._train(X, modality, "regression", (), np.asarray(y, np.float32))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """(rows,) in the unit of y."""
        return self._answers(X)


def as_texts(X: Any) -> tuple[list[Any], str] | None:
    """(rows, "text" or "pair") if X holds texts, a sequence or column of them, or pairs; else None."""
    values = X.to_numpy() if hasattr(X, "to_numpy") else X
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "OU" or values.ndim not in (1, 2):
            return None
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, str) or not len(values):
        return None
    if all(isinstance(v, str) for v in values):
        return list(values), "text"
    if all(
        isinstance(v, Sequence) and not isinstance(v, str) and all(isinstance(t, str) for t in v)
        for v in values
    ):
        if all(len(v) == 1 for v in values):
            return [v[0] for v in values], "text"
        if all(len(v) == 2 for v in values):
            return [tuple(v) for v in values], "pair"
    return None


def random_features(inputs: np.ndarray, seed: int) -> Any:
    """A module for rows of numbers: WIDTH random features of standardised inputs (rows, features)."""
    import torch
    from torch import nn

    mean, deviation = inputs.mean(0), inputs.std(0)
    features = inputs.shape[1]
    standard, wide = nn.Linear(features, features), nn.Linear(features, WIDTH)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        scale = torch.from_numpy(1 / np.where(deviation > 0, deviation, 1))
        standard.weight.copy_(torch.diag(scale))
        standard.bias.copy_(-torch.from_numpy(mean) * scale)
        wide.weight.copy_(torch.randn(WIDTH, features, generator=rng) / features**0.5)
        wide.bias.copy_(torch.randn(WIDTH, generator=rng))
    return nn.Sequential(standard, wide, nn.Tanh())
