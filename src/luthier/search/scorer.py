"""How good a choice is: the task's figure on validation rows, with the supernet reading the slices that the choice wants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from luthier.host import Adapted
from luthier.search.supernet import choose
from luthier.selection.space import Genome, Space
from luthier.signals.objectives import Aims, objective_for
from luthier.train.batches import encode
from luthier.train.fitted import Fitted, unknown_tag
from luthier.train.predict import mean_loss, predictions


class Scorer:
    """scorer(genome) -> score, larger is better. What writes texts is scored by its loss: to write every answer would take longer."""

    def __init__(self, model: Any, data: Any, supernet: Fitted, space: Space, settings: dict[str, Any]):
        self.model, self.split, self.task = model, data.validation, data.task
        self.net, self.space = supernet, space
        self.options = {"device": model.device, "precision": settings.get("precision", "fp32")}
        adaptation = supernet.adaptation
        self.encoded = encode(
            model.preprocess, self.split, self.task, head=adaptation.head, adaptation=adaptation
        )
        self.writes = self.task.kind == "text2text"
        self.metric = "loss" if self.writes else self.task.metric
        self.higher = not self.writes and bool(getattr(self.task, "higher_is_better", True))
        aims = Aims(
            (), supernet.standardisation, model.kind != "encoder-decoder", settings.get("signal", "auto")
        )
        self.objective = objective_for(self.task, aims)
        if self.task.kind == "tagging":
            self.options["unknown"] = unknown_tag(adaptation, self.task)
        self.adapted = Adapted(model.base)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The supernet on its base, for as long as candidates are scored; it reads all that it holds again afterwards."""
        self.adapted.attach("main", self.net.adaptation)
        try:
            yield
        finally:
            choose(self.net.adaptation, self.space.layouts(self.space.largest))
            self.adapted.detach("main")

    def __call__(self, genome: Genome) -> float:
        from luthier.data.scores import scores

        choose(self.net.adaptation, self.space.layouts(genome))
        if self.writes:
            return self.said(mean_loss(self.adapted, self.encoded, self.objective, **self.options))
        standardisation = self.net.standardisation
        found = predictions(
            self.adapted, self.encoded, self.task, standardisation=standardisation, **self.options
        )
        return self.said(float(scores(self.task, self.split.targets, found)[self.metric]))

    def said(self, score: float) -> float:
        """A score as the task's figure, and back."""
        return score if self.higher else -score
