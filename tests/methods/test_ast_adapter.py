"""Adapters of audio spectrogram transformers: every design is what its formula says, and both projections move."""

from __future__ import annotations

import itertools

import pytest
import torch
import transformers as tr
from torch.nn import functional as F

import luthier as lt
from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.methods.adapters.ast_adapter import ASTAdapter, depthwise
from luthier.methods.adapters.bottleneck import Adapter
from tests.host import bed

DESIGNS = list(
    itertools.product(
        ("pfeiffer", "houlsby"), ("parallel", "sequential"), ("yes", "no"), ("none", "conformer")
    )
)


def spectrograms(rows=3):
    return {"x": torch.randn(rows, 16, 8, generator=torch.Generator().manual_seed(0))}


def ast():
    torch.manual_seed(0)
    config = tr.ASTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, patch_size=4,
        frequency_stride=4, time_stride=4, max_length=16, num_mel_bins=8, initializer_range=0.2,
    )  # fmt: skip
    return tr.ASTModel(config).eval().requires_grad_(False)


@torch.no_grad()
@pytest.mark.parametrize(("where", "order", "residual", "convolution"), DESIGNS)
def test_every_design_on_a_spectrogram_transformer_is_its_formula(where, order, residual, convolution):
    model = Adapted(ast())
    part = ASTAdapter(where=where, order=order, residual=residual, convolution=convolution, width=5, kernel=3)
    made = bed.shaken(Adaptation.new(part, model.base), 0.1)
    model.attach("main", made)
    seen = {}

    def keep(name, first):
        def hook(module, args, out):
            seen[name] = (args[0] if first else out).clone()

        return hook

    handles = []
    for placed in made.placed():
        for at in placed.ats():
            module = model.base.get_submodule(at.site.path)
            handles.append(module.register_forward_hook(keep(f"{at.key} after", False)))
            handles.append(module.register_forward_hook(keep(f"{at.key} in", True)))
            if order == "parallel":
                partner = model.structure.partner(at.site, placed.part.reads)
                handles.append(
                    model.base.get_submodule(partner.path).register_forward_hook(keep(f"{at.key} x", True))
                )
    model(spectrograms())
    assert len(made.placed()) == (2 if where == "houlsby" and order == "parallel" else 1)
    assert sum(len(p.sites) for p in made.placed()) == (4 if where == "houlsby" else 2)
    for placed in made.placed():
        for at in placed.ats():
            module = model.base.get_submodule(at.site.path)
            h = F.linear(seen[f"{at.key} in"], module.weight, module.bias)
            z, v = (seen[f"{at.key} x"] if order == "parallel" else h), at.values
            inner = F.linear(z, v["down"], v["down_bias"])
            if convolution == "conformer":
                value, gate = inner.chunk(2, -1)
                inner = (value * torch.sigmoid(gate)).mT
                inner = F.conv1d(inner, v["depth"][:, None], v["depth_bias"], padding=1, groups=5).mT
            a = F.linear(F.gelu(inner), v["up"], v["up_bias"]) + (z if residual == "yes" else 0)
            want = h + a if order == "parallel" else a
            assert torch.allclose(seen[f"{at.key} after"], want, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("convolution", ["none", "conformer"])
@pytest.mark.parametrize("order", ["parallel", "sequential"])
def test_the_usual_residual_starts_as_the_base_and_the_other_does_not(order, convolution):
    model = Adapted(ast())
    want = model(spectrograms()).hidden
    for residual in ("usual", "yes", "no"):
        part = ASTAdapter(order=order, residual=residual, convolution=convolution, where="houlsby")
        with model.attached(Adaptation.new(part, model.base)):
            same = torch.equal(model(spectrograms()).hidden, want)
        assert same == (residual in ("usual", "yes" if order == "sequential" else "no"))


@pytest.mark.parametrize("convolution", ["none", "conformer"])
def test_both_projections_move_within_two_steps_and_would_not_from_two_zeros(convolution):
    weights = torch.randn(10, 32, generator=torch.Generator().manual_seed(1))
    for zero in (False, True):
        model = Adapted(ast())
        made = Adaptation.new(ASTAdapter(convolution=convolution), model.base)
        model.attach("main", made)
        if zero:
            with torch.no_grad():
                for p in made.trainable().values():
                    p.zero_()
        before = {k: v.clone() for k, v in made.state().items()}
        optimiser = torch.optim.SGD(made.trainable().values(), lr=0.1)
        for _ in range(2):
            optimiser.zero_grad()
            (model(spectrograms()).hidden * weights).sum().backward()
            optimiser.step()
        moved = {k.rpartition(".")[2] for k, v in made.state().items() if not torch.equal(v, before[k])}
        assert moved == ({"up_bias"} if zero else {k.rpartition(".")[2] for k in before})


@torch.no_grad()
def test_a_convolution_does_not_see_padding_nor_runs_in_a_decoder():
    model = Adapted(bed.base("bert"))
    part = ASTAdapter(convolution="conformer", where="houlsby", kernel=5, width=4)
    model.attach("main", bed.shaken(Adaptation.new(part, model.base)))
    x = bed.batch("bert")
    assert not x["attention_mask"].all()
    got = model(x).hidden
    for row in range(4):
        n = int(x["attention_mask"][row].sum())
        alone = model({k: v[row : row + 1, :n] for k, v in x.items()}).hidden
        assert torch.allclose(got[row : row + 1, :n], alone, atol=1e-4)
    with pytest.raises(OptionError, match="convolution=none"):
        Adaptation.new(part, bed.base("gpt2"))
    with pytest.raises(OptionError, match="an odd number"):
        ASTAdapter(convolution="conformer", kernel=6).parts()


@torch.no_grad()
def test_rows_may_have_tensors_of_their_own():
    rng = torch.Generator().manual_seed(0)
    z, kernels = torch.randn(2, 6, 3, generator=rng), torch.randn(2, 3, 5, generator=rng)
    both = depthwise(z, kernels)
    for row in range(2):
        want = F.conv1d(z[row].mT[None], kernels[row][:, None], padding=2, groups=3)[0].mT
        assert torch.allclose(both[row], want, atol=1e-5)
        assert torch.allclose(depthwise(z[row : row + 1], kernels[row])[0], want, atol=1e-5)


def test_the_sequential_design_in_the_feed_forward_layer_is_the_adapter_of_s202():
    base, x = bed.base("bert"), bed.batch("bert")
    mine = bed.shaken(Adaptation.new(ASTAdapter(order="sequential", activation="relu", width=4), base))
    other = Adaptation.new(Adapter(width=4), base)
    other.load_state(mine.state())
    model = Adapted(base)
    with torch.no_grad():
        results = []
        for made in (mine, other):
            with model.attached(made):
                results.append(bed.result(model, x))
    assert torch.allclose(*results, atol=1e-5)


def test_arrays_of_spectrograms_are_classified_from_end_to_end():
    import numpy as np

    from luthier.data.split import Data, Split
    from luthier.data.task import Task

    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(24, 16, 8)).astype(np.float32), np.arange(24) % 2
    task = Task(kind="classification", modality="array", labels=("no", "yes"), input="x", label="y")
    data = Data(Split(inputs, targets), None, None, task, "spectrograms")
    model = lt.load(ast(), device="cpu")
    fitted = lt.fit(model, data, ASTAdapter(width=4), steps=2, batch_size=8, progress=False)
    assert fitted.predict_proba(inputs[:3]).shape == (3, 2)
