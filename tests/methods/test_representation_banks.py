"""Edits of representations in a bank: every row its own, as each adaptation alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from luthier.host import Adaptation, Adapted
from luthier.host.bank import Bank
from luthier.methods.adapters.p_adapter import PLaplacian
from luthier.methods.representation.lofit import LoFiT
from luthier.methods.representation.loreft import DiReFT, LoReFT
from luthier.methods.representation.sct import SCT, SCTOutputs
from tests.host import bed

METHODS = {
    "loreft": LoReFT(rank=3, first=2, last=2),
    "direft": DiReFT(rank=3, tied=True),
    "lofit": LoFiT(),
    "offsets": LoFiT(),
    "sct": SCT(reduction=4),
    "sct_outputs": SCTOutputs(reduction=4),
    "p_laplacian": PLaplacian(reduction=4),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "t5"])
@torch.no_grad()
def test_rows_of_a_bank_are_each_their_own(name: str, architecture: str) -> None:
    base, x = bed.base(architecture), bed.batch(architecture)
    part, model, held = METHODS[name], Adapted(base), {}
    for i, key in enumerate("ab"):
        held[key] = Adaptation.new(part, base, seed=i)
        if name == "offsets":
            kept = {a.site.name: [0, 2] for a in held[key].at()}
            part.offsets_at(SimpleNamespace(main=held[key]), kept)
        bed.shaken(held[key], seed=i)
    alone = {}
    for key, made in held.items():
        with model.attached(made):
            alone[key] = bed.result(model, x)
    route = ["a", "b", "b", "a"]
    bank = Bank(base, held)
    with model.attached(bank.adaptation), model.given(slots=bank.route(route)):
        together = bed.result(model, x)
    assert not torch.allclose(alone["a"], alone["b"], atol=1e-3)
    for i, key in enumerate(route):
        bed.close(together[i], alone[key][i], 1e-4)
