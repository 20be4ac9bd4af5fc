"""Which trained prompt is worth starting from, or learning from, on your data: PANDA's score of transfer (Zhong et al. 2022, S324).

sim(s, t) = cosine(e_s, e_t)    e: what a prompt adds to the hidden state where the model predicts, mean over target rows
Beside it the cosine of the prompts themselves, which it is to be better than, where their shapes agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from luthier.errors import OptionError


@dataclass(frozen=True)
class Transfer:
    """How a source relates to the target."""

    similarity: float
    """Cosine of the two task embeddings."""
    prompt_cosine: float | None
    """Cosine of the two prompts; None where they have other shapes, or are no prompts."""


def transferability(
    model: Any, data: Any, target: Any, sources: Mapping[str, Any], *, rows: int = 128
) -> dict[str, Transfer]:
    """{source: how near it is to `target`}, on training rows of the target's data.

    target, sources: adaptations of one base (fitted ones); the target's is a plain one that was trained on `data`.
    Raises OptionError without rows or sources.
    """
    if not sources or rows < 1:
        raise OptionError("transferability needs a source at least, and a row.")
    whole = {f"source {name}": one for name, one in sources.items()} | {"target": target}
    embedded = embeddings(model, data, whole, rows=rows)
    from luthier.signals.task_embedding import similarity

    return {
        name: Transfer(
            similarity(embedded[f"source {name}"], embedded["target"]), _cosine(model, one, target)
        )
        for name, one in sources.items()
    }


def embeddings(
    model: Any, data: Any, adaptations: Mapping[str, Any], *, rows: int = 128
) -> dict[str, Tensor]:
    """{name: task embedding (width,)} of each adaptation, over the first training rows of `data`."""
    from luthier.host import Adapted
    from luthier.signals.task_embedding import task_embedding
    from luthier.train.batches import encode, in_order
    from luthier.train.carry import with_head_of
    from luthier.train.predict import BATCH

    shown = data.train.select(range(min(rows, len(data.train))))
    encoded = encode(model.preprocess, shown, data.task, targets=False)
    batches = [batch for _, batch in in_order(encoded, BATCH, model.device)]
    adapted = Adapted(model.base)
    found = {}
    for name, one in adaptations.items():
        bare = with_head_of(getattr(one, "adaptation", one), None, model.base)
        with adapted.attached(bare, "shown"):
            adapted.eval()
            found[name] = task_embedding(adapted, "shown", batches)
    return found


def _cosine(model: Any, one: Any, other: Any) -> float | None:
    from luthier.merging.prompt_vectors import PromptVector, prompt_of

    try:
        a, b = (prompt_of(x, model) for x in (one, other))
        return PromptVector(a.values, a.base).cosine(PromptVector(b.values, b.base))
    except OptionError:
        return None
