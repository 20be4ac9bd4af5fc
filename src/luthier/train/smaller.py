"""Writing what a method that cuts leaves of a model: the smaller model as Transformers saves one, and its adaptation."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from luthier.errors import LuthierError, ModelError, RunError
from luthier.train.fitted import Fitted

MODEL, ADAPTATION = "model", "adaptation"


def write_smaller(fitted: Fitted, folder: str | Path) -> Fitted:
    """`fitted.smaller()`, written to `folder`: model/ and adaptation/. Returns it as it comes back from there.

    The model is read again before anything stays: ModelError where its configuration cannot say what was cut (heads, or layers
    of unequal width), RunError where the folder exists.
    """
    from luthier.adaptations import load_adaptation
    from luthier.models.load import load, quiet

    folder, made = Path(folder), fitted.smaller()
    if folder.exists():
        raise RunError(f"{folder} exists. Choose another folder, or remove it.")
    base: Any = made.model.base
    tokenizer = getattr(fitted.preprocess, "tokenizer", None)
    if tokenizer is None or not hasattr(base, "save_pretrained"):
        raise ModelError(
            f"{fitted.model.name} is no Transformers model of texts, so it is not written. Use fitted.smaller() in Python."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
        with quiet():
            base.save_pretrained(Path(aside, "out", MODEL))
        tokenizer.save_pretrained(Path(aside, "out", MODEL))
        made.save(Path(aside, "out", ADAPTATION))
        try:
            again = load(Path(aside, "out", MODEL), device=fitted.model.device, dtype=fitted.model.dtype)
            back = load_adaptation(Path(aside, "out", ADAPTATION), again)
        except LuthierError as error:
            raise ModelError(
                f"The smaller model cannot be written so that it loads as itself ({error}) Cut no heads (cut_heads=0), or keep "
                "the adaptation attached to the whole model."
            ) from None
        Path(aside, "out").rename(folder)
    return back


def numbers(model: Any) -> int:
    """Parameters of a model."""
    return sum(p.numel() for p in model.base.parameters())
