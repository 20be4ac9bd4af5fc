"""Deep prompts: tokens of their own at the entry of every block (Jia et al. 2022, "Visual Prompt Tuning", deep; as Qin and Eisner 2021 perturb every layer of a text model).

[P_0; E(x)], and before block l > 0 the prompt's positions are replaced by P_l    P_l: (length, width)    trained: blocks * length * width
Not an identity at step 0; not a weight change: it cannot merge. Of two towers the first has the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

from luthier.host.part import Start, method
from luthier.host.sites import Site, Structure
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.starts.normal import Normal


@method("deep_prompt", targets="embedding", rate=3e-2)
class DeepPrompt(PromptTuning):
    start: Start = Normal()  # every block's tokens before training

    deep = True

    def sites(self, structure, name=None):
        return every_block(super().sites(structure, name), structure, name)

    def tokens_at(self, h, t, ctx):
        return t.P


def every_block(first: Sequence[Site], structure: Structure, name: str | None) -> Sequence[Site]:
    """Where a prompt enters, `first`, and every later block of the same tower."""
    if name is not None:
        return first
    tower = structure.tower(first[0].tower)
    later = [s for s in structure.sites if s.role == "block" and s.tower == tower.name and s.layer]
    return [*first[:1], *later]
