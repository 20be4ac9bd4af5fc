"""A forward with a soft prompt over a model of which SKIP has cut half of the feed-forward units, and over the whole one.

python bench/cut_model.py [--pairs 12] [--threads 1]    8 x 64 tokens, 20 prompt tokens

Two ways: attached to the whole model, where only what is kept is multiplied, and on the smaller copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timing


def main(argv: Sequence[str] | None = None) -> None:
    given = timing.arguments(__doc__, argv)
    import torch
    import transformers

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.host.narrow import smaller
    from luthier.papers.checks.s282 import inputs
    from luthier.papers.checks.s301 import left_out

    name = "bert" if given.smoke else "minilm"
    whole, model = (lt.load(f"builtin:{name}", device="cpu") for _ in range(2))
    batch = inputs(model, *((2, 8) if given.smoke else (8, 64)))

    def forward(base: Any, made: Any) -> Any:
        adapted: Any = Adapted(base)
        adapted.attach("main", made)

        def call() -> Any:
            with torch.no_grad():
                return adapted(batch)

        return call

    cut = left_out(model.base, 0.5)
    small, rest = smaller(model.base, cut)
    peer = forward(whole.base, Adaptation.new(lt.methods.PromptTuning(length=20), whole.base))
    figures = [
        timing.beside(
            f"forward of {name}, half of its feed-forward units cut, {how}, against the whole model",
            timing.in_turns(ours, peer, given.pairs or (2 if given.smoke else 12)),
            1 / 1.3,
            f"transformers {transformers.__version__}",
        )
        for how, ours in (("attached", forward(model.base, cut)), ("in a copy", forward(small, rest)))
    ]
    timing.write("cut_model", figures, given)


if __name__ == "__main__":
    main()
