"""VL-Adapter: adapters that several tasks share, wholly, by half, or not (Sung et al. 2022, "VL-Adapter: Parameter-Efficient Transfer Learning for Vision-and-Language Tasks", S201).

h <- h + s up_a(act(down_a h))    a: the row's task    down: (width, out)  up: (out, width)  biases: (width,), (out,)
sharing=single: one adapter for all tasks; half: one down projection, an up projection for each; multiple: an adapter for each
trained: 2 * width * out + width + out per site (half: + width * out + out, multiple: + all of it, for each further task)
With norms=true the model's layer norms train as well, one set for all tasks.
Step 0 is the base (up = 0). Not a weight change: it cannot merge.

The rows' tasks come with every batch under `attributes` (`--attribute COLUMN` names a column of the data), and `tasks` says which there are:
--set tasks="caption, question" sharing=half. Without tasks all rows share one adapter. How well each sharing does: `luthier compare`.

Differs: the paper also trains the projection of image features into the language model and, in its other arms, Hyperformer, Compacter
(`compacter`), prompts and LoRA; here norms are an option, and any task's rows may be of any kind that the model reads.
"""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from luthier.errors import OptionError
from luthier.host.options import options
from luthier.host.part import Free, Method, Source, method
from luthier.methods.adapters.bottleneck import ACTIVATIONS, Activation, Adapter
from luthier.methods.sparse.parameters import LayerNormTuning
from luthier.sources.by_label import ByLabel
from luthier.sources.labels import declared

OWN = {"half": "up | up_bias", "multiple": ""}
"""Which tensors each task has of its own, as the source by_label says it."""


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x weight^T + bias, where weight and bias may be each row's own. x: (rows, tokens, in) or (rows, in)"""
    if weight.dim() == 2:
        return x @ weight.mT + bias
    flat = x.reshape(len(x), -1, x.shape[-1])
    return (flat @ weight.mT + bias[:, None]).reshape(*x.shape[:-1], -1)


@options
class SharedAdapter(Adapter):
    """An adapter of which every tensor may be all rows' or each row's own.

    trained: 2 * width * out + width + out per site
    """

    def edit(self, h, t, ctx):
        inner = ACTIVATIONS[self.activation](linear(h, t.down, t.down_bias))
        return h + self.scale * linear(inner, t.up, t.up_bias)


@method("vl_adapter", targets="*attention.output | mlp.down", rate=2e-3, identity_start=True)
class VLAdapter(Method):
    tasks: str = ""  # the tasks' names: "caption, question"
    sharing: Literal["single", "half", "multiple"] = "single"  # what tasks have in common
    attribute: NonNegativeInt = 0  # which of the rows' attributes says the task, from 0
    width: PositiveInt = 32  # bottleneck width
    activation: Activation = "gelu"  # between down and up
    scale: PositiveFloat = 1.0  # s
    norms: bool = False  # whether the model's layer norms train as well

    def parts(self):
        if len(groups := declared(self.name, self.tasks)) > 1:
            raise OptionError(
                f"vl_adapter: tasks={self.tasks!r} are of {len(groups)} attributes. Write them as 'caption, question'."
            )
        if self.sharing != "single" and not groups:
            raise OptionError(
                f"vl_adapter: sharing={self.sharing} needs the tasks' names. Set tasks='caption, question', or sharing=single."
            )
        source: Source = Free()
        if self.sharing != "single":
            source = ByLabel(labels=self.tasks, attribute=self.attribute, tensors=OWN[self.sharing])
        adapter = SharedAdapter(
            targets=self.targets,
            width=self.width,
            activation=self.activation,
            scale=self.scale,
            source=source,
        )
        return (adapter, LayerNormTuning()) if self.norms else (adapter,)
