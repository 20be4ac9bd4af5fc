"""A merged copy of a model whose weights are tied: ties survive, and the copy is a plain model."""

from __future__ import annotations

import pytest
import torch

from luthier.host import Adaptation, Adapted
from luthier.host.merge import merged_copy
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.sparse.parameters import Full
from tests.host import bed


def moved(base: torch.nn.Module, method: object) -> Adaptation:
    made = Adaptation.new(method, base)  # type: ignore[arg-type]
    with torch.no_grad():
        for p in made.trainable().values():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    return made


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_full_tuning_of_a_tied_model_leaves_its_ties(name: str) -> None:
    base = bed.base(name)
    tied = base.get_input_embeddings().weight is base.get_output_embeddings().weight
    made = moved(base, Full())
    copy = merged_copy(base, made)
    assert tied and copy.get_input_embeddings().weight is copy.get_output_embeddings().weight
    assert len(list(copy.parameters())) == len(list(base.parameters()))
    assert not torch.equal(copy.get_input_embeddings().weight, base.get_input_embeddings().weight)
    model, batch = Adapted(base), bed.batch(name)
    with torch.no_grad(), model.attached(made):
        want = bed.result(model, batch)
    bed.close(bed.result(Adapted(copy), batch), want, 1e-6)
    again = merged_copy(copy, moved(copy, Full()))  # a second stage begins from it
    assert again.get_input_embeddings().weight is again.get_output_embeddings().weight


def test_a_low_rank_change_of_a_tied_head_leaves_the_embedding() -> None:
    base = bed.base("gpt2")
    made = moved(base, LoRA(rank=2, targets="head"))
    copy = merged_copy(base, made)
    assert torch.equal(copy.get_input_embeddings().weight, base.get_input_embeddings().weight)
    assert not torch.equal(copy.get_output_embeddings().weight, base.get_output_embeddings().weight)


def test_unmerging_gives_a_tied_weight_back() -> None:
    base = bed.base("gpt2")
    model, held = Adapted(base), base.get_input_embeddings().weight
    model.attach("main", moved(base, Full()))
    model.merge("main")
    assert base.get_input_embeddings().weight is base.get_output_embeddings().weight is not held
    model.unmerge("main")
    model.detach()
    assert base.get_input_embeddings().weight is base.get_output_embeddings().weight is held
