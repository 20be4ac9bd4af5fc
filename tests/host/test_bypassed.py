"""Modules whose forward the model bypasses: an edit there would do nothing, so it is refused."""

import pytest
import torch

from luthier.errors import ModelError, SiteError
from luthier.host import Adaptation, Adapted
from luthier.host.probe import dead_sites, refuse_dead
from luthier.methods.low_rank.lora import LoRA


@pytest.fixture(scope="module")
def mamba():
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    return MambaForCausalLM(
        MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4)
    ).eval()


def probe(base, targets):
    adapted = Adapted(base)
    try:
        adapted.attach("main", Adaptation.new(LoRA(targets=targets, rank=1), base))
        refuse_dead(adapted, "main", {"input_ids": torch.tensor([[1, 2, 3, 4]])})
    finally:
        for name in list(adapted.adaptations):
            adapted.detach(name)


def test_where_every_site_is_bypassed_it_is_said(mamba):
    with pytest.raises(SiteError, match=r"2 sites do not change the output.*dt_proj"):
        probe(mamba, "ssm.dt")
    with pytest.raises(ModelError, match="Conv1d"):
        probe(mamba, "ssm.conv")


@pytest.mark.parametrize("targets", ["ssm.in", "ssm.out", "ssm.in | ssm.x"])
def test_the_others_are_let_pass(mamba, targets):
    probe(mamba, targets)


def test_where_some_are_bypassed_each_is_named(mamba):
    adapted = Adapted(mamba)
    adapted.attach("main", Adaptation.new(LoRA(rank=1, targets="ssm.dt | ssm.out"), mamba))
    dead = dead_sites(adapted, "main", {"input_ids": torch.tensor([[1, 2, 3, 4]])})
    adapted.detach()
    assert len(dead) == 2 and all("dt_proj" in name for name in dead)
