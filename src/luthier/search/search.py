"""Search: the layouts of a method that suit a data set, under a budget of trained parameters (S319, S327).

    found = lt.search(model, data, "glora", budget="params=0.5%", out="found/")

A supernet of all layouts is trained on the training rows; evolution scores layouts on the validation rows, with the supernet's weights;
the winner keeps those (GLoRA) or is trained anew from the start (NOAH). The test rows are not looked at. In a folder, a search
that was killed goes on where it stopped: the fits bitwise, and no candidate is scored twice.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from luthier.compare.budget import Budget, of_parameters
from luthier.compare.sized import base_parameters
from luthier.errors import DataError, OptionError
from luthier.host import Adaptation
from luthier.host.options import to_card
from luthier.search.evolution import Candidate, Evolution, evolve
from luthier.search.folder import Folder
from luthier.search.scorer import Scorer
from luthier.search.supernet import Supernet, space_of, taken
from luthier.selection.space import Genome, Layouts, Space, can_be_searched
from luthier.train.beginning import as_method
from luthier.train.fit import fit
from luthier.train.fitted import Fitted, as_fitted
from luthier.train.progress import Silent, progress_for


@dataclass
class Searched:
    """What a search found. fitted: the winner, trained."""

    fitted: Fitted
    space: Space
    genome: Genome
    parameters: int
    """That the winner trains, the output head apart: never more than `allowed`."""
    allowed: int
    validation: dict[str, float]
    """The winner's figure in the supernet, by which it won."""
    candidates: list[Candidate]

    @property
    def layouts(self) -> Layouts:
        return self.space.layouts(self.genome)


def search(
    model: Any,
    data: Any,
    method: Any,
    *,
    budget: str | Budget,
    out: str | Path | None = None,
    evolution: Evolution | None = None,
    epochs: float = 30,
    steps: int | None = None,
    retrain: bool | None = None,
    retrain_epochs: float = 10,
    retrain_steps: int | None = None,
    seed: int = 0,
    progress: bool | Silent = True,
    **settings: Any,
) -> Searched:
    """Find layouts of `method` (a name, or a method that says its `space`) that score best on validation within the budget.

    budget: params=0.5% of the base's parameters, or a number of them. epochs, steps: of the supernet. evolution: rounds, population and
    the rest; its seed is this one. retrain: train the winner anew, for retrain_epochs or retrain_steps; None: as the method's paper does.
    settings: of `luthier.fit`, for the supernet and for retraining. Raises OptionError, DataError or ModelError, each with one line
    that names the fix.
    """
    method = as_method(method)
    if not can_be_searched(method):
        raise OptionError(f"{method.name} says no space of layouts to search. Choose glora or noah.")
    if data.validation is None or not len(data.validation):
        raise DataError("A search scores candidates on validation rows, and there are none. Split some off.")
    how = replace(evolution or Evolution(), seed=seed)
    how.check()
    allowed = of_parameters(budget).parameters_allowed(base_parameters(model))
    assert allowed is not None
    again = bool(getattr(method, "retrains", False)) if retrain is None else retrain
    space = space_of(method, Adaptation.new(method, model.base, seed=seed))
    space.refuse(allowed)
    lengths = {"epochs": epochs, "steps": steps, "retrain": again, "retrain_epochs": retrain_epochs, "retrain_steps": retrain_steps}  # fmt: skip
    folder = Folder(
        out,
        {
            "method": to_card(method),
            "model": model.fingerprint,
            "data": data.digest,
            "allowed": allowed,
            **asdict(how),
            **lengths,
            **settings,
        },
    )
    shown = progress_for(progress, True)
    shown.say(f"{space.combinations:.3g} layouts of {len(space.genes)} genes; up to {allowed:,} parameters")

    def fitted_to(rows: Any, what: Any, name: str, **options: Any) -> Fitted:
        return fit(model, rows, what, out=folder.at(name), seed=seed, progress=shown, **options, **settings)

    unseen = replace(data, test=None)
    supernet = fitted_to(
        replace(unseen, validation=None), Supernet(of=method), "supernet", epochs=epochs, steps=steps
    )
    scorer = Scorer(model, unseen, supernet, space, settings)
    with scorer.attached(), shown:
        found = evolved(scorer, space, allowed, how, folder, shown)
    winner = min(found, key=lambda c: c.order)
    layouts, figure = space.layouts(winner.genome), {scorer.metric: scorer.said(winner.score)}
    if again:
        fresh = Adaptation.new(method, model.base, layouts=layouts, seed=seed)
        length = {"epochs": retrain_epochs, "steps": retrain_steps}
        fitted = fitted_to(unseen, method, "retrained", after=fresh, **length)
    else:
        fitted = as_fitted(taken(supernet.adaptation, method, layouts, model.base), model)
        fitted.adaptation.about["validation"] = figure
    counted = fitted.adaptation.counts()["method"]
    assert counted == winner.parameters <= allowed, (
        f"counted {counted}, searched {winner.parameters} of {allowed}"
    )
    fitted.adaptation.about["searched"] = {"candidates": len(found), "allowed": allowed, "validation": figure}
    if out is not None:
        fitted.save(Path(out) / "adaptation")
    told = {
        "genome": winner.genome,
        "layouts": layouts,
        "parameters": counted,
        "validation": figure,
        "retrained": again,
    }
    folder.finish(told, space)
    return Searched(fitted, space, winner.genome, counted, allowed, figure, found)


def evolved(
    scorer: Scorer, space: Space, allowed: int, how: Evolution, folder: Folder, shown: Silent
) -> list[Candidate]:
    """All candidates, each noted in the folder and shown as it is scored."""
    shown.phase("search", how.rounds * how.population)
    seen: list[Candidate] = []

    def tell(candidate: Candidate) -> None:
        folder.add(candidate)
        seen.append(candidate)
        shown.score(scorer.metric, scorer.said(max(c.score for c in seen)))
        shown.step(len(seen), len(scorer.split), None)

    return evolve(space, allowed, scorer, how, known=folder.scores, tell=tell)
