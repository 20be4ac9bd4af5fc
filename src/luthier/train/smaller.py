"""Writing what a method that cuts leaves of a model: the smaller model as Transformers saves one, and its adaptation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.errors import LuthierError, ModelError
from luthier.train.fitted import Fitted

MODEL, ADAPTATION = "model", "adaptation"


def write_smaller(fitted: Fitted, folder: str | Path) -> Fitted:
    """`fitted.smaller()`, written to `folder`: model/ and adaptation/. Returns it as it comes back from there.

    The model is read again before anything stays: ModelError where its configuration cannot say what was cut (heads, or layers
    of unequal width), RunError where the folder exists.
    """
    from luthier.adaptations import load_adaptation
    from luthier.models.load import load
    from luthier.models.write import new_folder, refuse_existing, write_files

    refuse_existing(folder)
    made = fitted.smaller()
    if getattr(fitted.preprocess, "tokenizer", None) is None:
        raise ModelError(
            f"{fitted.model.name} is no Transformers model of texts, so it is not written. Use fitted.smaller() in Python."
        )
    with new_folder(folder) as aside:
        write_files(made.model, aside / MODEL)
        made.save(aside / ADAPTATION)
        try:
            again = load(aside / MODEL, device=fitted.model.device, dtype=fitted.model.dtype)
            back = load_adaptation(aside / ADAPTATION, again)
        except LuthierError as error:
            raise ModelError(
                f"The smaller model cannot be written so that it loads as itself ({error}) Cut no heads (cut_heads=0), or keep "
                "the adaptation attached to the whole model."
            ) from None
    return back


def numbers(model: Any) -> int:
    """Parameters of a model."""
    return sum(p.numel() for p in model.base.parameters())
