"""A prompt of your own making: any carrier crossed with any source and any start.

carrier=input: tokens in front of the embedded input (as prompt_tuning); deep: tokens of their own at every block (deep_prompt);
keys_values: keys and values in every layer (p_tuning_v2); kernel: the matrix and vector per head that such a prefix of `length`
tokens comes to (ntk_attention), whose cost does not grow with the length
trained: as the carrier's method, in the numbers that the source keeps
Not an identity at step 0; not a weight change: it cannot merge.

`--method prompt --set carrier=deep source=low_rank source.rank=4 start=vocabulary`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import PositiveInt

from luthier.host.part import Free, Method, Part, Source, Start, method
from luthier.methods.prefixes.ntk_attention import NTKAttention
from luthier.methods.prefixes.p_tuning_v2 import PTuningV2
from luthier.methods.prompts.deep_prompt import DeepPrompt
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.starts.normal import Normal
from luthier.starts.prefix_kernel import PrefixKernel


def kernel(length: int, source: Source, start: Start) -> NTKAttention:
    """What a prefix of `length` tokens, as `start` gives it, comes to; the source is of Z and k."""
    return NTKAttention(source=source, start=PrefixKernel(length=length, prefix=start))


CARRIERS: dict[str, Callable[..., Part]] = {
    "input": PromptTuning,
    "deep": DeepPrompt,
    "keys_values": PTuningV2,
    "kernel": kernel,
}


@method("prompt", rate=3e-2)
class Prompt(Method):
    carrier: Literal["input", "deep", "keys_values", "kernel"] = "input"  # where the prompt enters
    length: PositiveInt = 20  # tokens
    source: Source = Free()  # where the numbers come from
    start: Start = Normal()  # what they are before training

    def parts(self):
        return (CARRIERS[self.carrier](length=self.length, source=self.source, start=self.start),)
