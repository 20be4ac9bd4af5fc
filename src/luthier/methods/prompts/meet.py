"""MEET: one control for each preference, first trained beside a frozen model and then with it (Xue et al. 2023, "Parameter-Efficient Tuning Helps Language Model Alignment", S227).

[C_a; E(x)] under W, or W + (alpha / rank) B_a A_a    a: the preference that the row is labelled with
C: (preferences, length, width), or A: (preferences, rank, in) and B: (preferences, out, rank)    W: every parameter that the loss reaches
trained: length * width + all (and length * width for each further preference; with adapter=lora rank * (in + out) per site instead)
Plan: stage 1 trains the controls by the task's loss with the model frozen, stage 2 controls and model together; `first` shares the steps.
Not an identity at step 0: the controls. A prompt cannot merge; controls by LoRA do for one preference: `merge(name, attributes=["good"])`.

Pointwise labels are enough: a row is a prompt, a response and its label, `--attribute COLUMN --set preferences="good, bad"`; of pairs the
chosen and the rejected response are a row each. At prediction the control is chosen: `luthier predict DIR --control good`. Without
preferences all rows share one control.

Differs: the paper leaves the stages' losses open here; both are the negative log-likelihood of the response under its own label's control.
AdamW; the model's rate stands in proportion to the controls' (`model_rate`). A file holds model and controls.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from luthier.errors import OptionError
from luthier.host.part import Free, Start, method
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.prompts.prompt_and_model import PromptAndModel
from luthier.sources.by_label import ByLabel
from luthier.starts.normal import Normal


@method("meet", rate=3e-2)
class MEET(PromptAndModel):
    preferences: str = ""  # the labels of preferences: "good, bad"
    adapter: Literal["prompt", "lora"] = (
        "prompt"  # what a control is: soft tokens, or a pair of low-rank factors
    )
    length: PositiveInt = 10  # tokens of a control
    rank: PositiveInt = 8  # of a control by LoRA
    start: Start = Normal()  # a control's tokens before training
    first: Annotated[float, Field(ge=0, lt=1)] = (
        0.5  # share of the steps in which the model is frozen; 0: joint
    )
    model_rate: PositiveFloat = 5e-5  # learning rate of the model's parameters

    def __post_init__(self):
        if self.preferences and type(self.source) is Free:
            object.__setattr__(self, "source", ByLabel(labels=self.preferences))

    def control(self):
        if self.preferences and getattr(self.source, "labels", None) != self.preferences:
            raise OptionError(
                f"meet: source={self.source.name} is not kept for each of the preferences {self.preferences!r}. Leave the source, or the preferences, out."
            )
        if self.adapter == "prompt":
            return super().control()
        return LoRA(rank=self.rank, source=self.source)
