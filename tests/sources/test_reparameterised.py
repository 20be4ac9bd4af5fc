"""Sources that make a prompt out of other numbers: what they are at the start, what trains, and what they are settled to."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.methods.prompts.mpt import MPT
from luthier.methods.prompts.prompt import CARRIERS, Prompt
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.methods.prompts.residual_prompt import ResidualPrompt
from luthier.methods.prompts.spt import SPT
from luthier.methods.prompts.xpe import XPE
from luthier.sources.encoder import Encoder
from luthier.sources.rank_one import RankOne
from luthier.sources.residual import Residual
from luthier.sources.scaled import Scaled
from luthier.sources.settle import settled
from luthier.starts.normal import Normal
from tests.conformance.cells import Cell
from tests.conformance.counting import closed_form
from tests.host import bed

SOURCES = {
    "residual": Residual(bottleneck=6),
    "residual without norm": Residual(bottleneck=6, norm=False),
    "residual without skip": Residual(bottleneck=6, skip=False),
    "scaled": Scaled(),
    "scaled tokens": Scaled(over="token"),
    "encoder": Encoder(hidden=7),
    "encoder, dual": Encoder(hidden=7, share=0.3, inputs=3),
    "encoder from the start": Encoder(hidden=7, share=0.7, initial="start"),
    "rank one": RankOne(),
    "rank two": RankOne(rank=2, initial="normal", std=1.0),
}


def outputs(base, made, name):
    model = Adapted(base)
    with torch.no_grad(), model.attached(made):
        return bed.result(model, bed.batch(name))


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
@pytest.mark.parametrize("carrier", list(CARRIERS))
@pytest.mark.parametrize("source", list(SOURCES))
def test_what_is_settled_says_the_same_and_has_no_source(name, carrier, source):
    base = bed.base(name)
    part = Prompt(carrier=carrier, length=5, source=SOURCES[source]).parts()[0]
    made = bed.shaken(Adaptation.new(part, base, seed=3)).eval()
    plain = settled(made, base)
    assert plain.method.source.name == "free"
    assert {n.rsplit(".", 1)[1] for n in plain.trainable()} == set(
        part.tensors(made.at()[0].site, made.at()[0].layout)
    )
    got = outputs(base, plain, name)
    bed.close(got, outputs(base, made, name), 1e-6)
    assert not torch.allclose(got, bed.result(Adapted(base), bed.batch(name)), atol=1e-3)


@pytest.mark.parametrize("carrier", list(CARRIERS))
@pytest.mark.parametrize("source", ["residual", "scaled", "encoder", "rank one"])
def test_the_closed_forms_hold_under_every_carrier(carrier, source):
    part = Prompt(carrier=carrier, length=5, source=SOURCES[source]).parts()[0]
    made = Adaptation.new(part, bed.base("llama"))
    assert closed_form(Cell("prompt", "llama", part), made) == made.counts()["method"]


PLAIN = [
    (ResidualPrompt, Residual(bottleneck=6, gain=0.0)),
    (SPT, Scaled()),
    (SPT, Scaled(over="token", trained=False)),
    (XPE, Encoder(share=0.0)),
    (MPT, RankOne()),
    (MPT, RankOne(rank=3)),
]


@pytest.mark.parametrize(("kind", "source"), PLAIN, ids=lambda x: str(getattr(x, "name", x)))
def test_where_the_source_does_nothing_it_is_the_plain_prompt_bit_for_bit(kind, source):
    base = bed.base("t5")
    start = Normal(std=1.0)
    plain = Adaptation.new(PromptTuning(length=6, start=start), base, seed=5)
    made = Adaptation.new(kind(length=6, start=start, source=source), base, seed=5)
    assert torch.equal(made.at()[0].t(None).P, plain.at()[0].t(None).P)
    assert torch.equal(outputs(base, made, "t5"), outputs(base, plain, "t5"))


def test_the_net_of_a_residual_prompt_is_the_papers():
    base = bed.base("bert")
    made = bed.shaken(Adaptation.new(ResidualPrompt(length=4, source=Residual(bottleneck=6)), base))
    v, width = made.at()[0].values, base.config.hidden_size
    net = torch.nn.Sequential(
        torch.nn.Linear(width, 6), torch.nn.ReLU(), torch.nn.Linear(6, width), torch.nn.LayerNorm(width)
    )
    names = ("P_down_w", "P_down_b", "P_up_w", "P_up_b", "P_gain", "P_bias")
    with torch.no_grad():
        for p, name in zip(net.parameters(), names, strict=True):
            p.copy_(v[name])
        assert torch.allclose(made.at()[0].t(None).P, v["P"] + net(v["P"]), atol=1e-6)


def test_a_residual_net_starts_as_large_as_the_prompt():
    base = bed.base("llama")
    for given, first in ((None, 0.25), (1.0, 1.0)):
        part = ResidualPrompt(length=200, start=Normal(std=0.25), source=Residual(bottleneck=6, gain=given))
        at = Adaptation.new(part, base).at()[0]
        net = at.t(None).P - at.values["P"]
        assert float(net.detach().std()) == pytest.approx(first, rel=0.02)


@pytest.mark.parametrize(("share", "encoded"), [(0, 0), (0.3, 6), (0.7, 14), (1, 20)])
def test_of_a_dual_prompt_the_direct_part_stands_first(share, encoded):
    base = bed.base("bert")
    plain = Adaptation.new(PromptTuning(length=20), base, seed=4).at()[0].values["P"]
    at = Adaptation.new(XPE(length=20, source=Encoder(share=share, hidden=5)), base, seed=4).eval().at()[0]
    prompt, direct = at.t(None).P, 20 - encoded
    assert prompt.shape == plain.shape and torch.equal(prompt[:direct], plain[:direct])
    assert ("P_E" in at.values) == (encoded > 0) and ("P" in at.values) == (encoded < 20)
    if encoded:
        v = at.values
        assert len(v["P_E"]) == encoded
        h = torch.relu(v["P_E"] @ v["P_1_w"].T + v["P_1_b"])
        h = torch.relu(h @ v["P_2_w"].T + v["P_2_b"])
        assert torch.allclose(prompt[direct:], h @ v["P_3_w"].T + v["P_3_b"], atol=1e-6)


def test_the_encoder_drops_out_in_training_only():
    base = bed.base("bert")
    made = Adaptation.new(XPE(length=20, source=Encoder(hidden=16, dropout=0.5)), base)
    at = made.at()[0]
    made.eval()
    assert torch.equal(at.t(None).P, at.t(None).P)
    made.train()
    assert not torch.equal(at.t(None).P, at.t(None).P)


def test_inputs_from_the_start_are_whole_tokens():
    with pytest.raises(OptionError, match="inputs=0"):
        Adaptation.new(XPE(source=Encoder(initial="start", inputs=3)), bed.base("bert"))


@pytest.mark.parametrize("rank", [1, 3])
def test_the_product_of_a_task_has_its_rank_and_few_numbers(rank):
    base = bed.base("t5")
    source = RankOne(rank=rank, initial="normal", train_shared=False)
    made = Adaptation.new(MPT(length=10, source=source), base)
    at, width = made.at()[0], base.config.d_model
    assert made.counts()["method"] == rank * (10 + width)
    ratio = at.t(None).P.detach().double() / at.values["P"].double()
    assert torch.linalg.matrix_rank(ratio, rtol=1e-4) == rank
    assert float(at.values["P_u"].detach().std()) == pytest.approx(0.02, rel=0.5)


def test_an_inner_scaled_prompt_stands_at_its_block():
    base = bed.base("t5")
    made = Adaptation.new(SPT(length=3, inner=2), base)
    assert [(a.site.role, a.site.layer) for a in made.at()] == [("embedding", None), ("block", 2)]
    only = outputs(base, Adaptation.new(SPT(length=3), base), "t5")
    both = outputs(base, made, "t5")
    assert not torch.allclose(only, both, atol=1e-4)
    with pytest.raises(OptionError, match="Choose 1 to 2"):
        Adaptation.new(SPT(length=3, inner=3), base)


def test_a_source_is_found_by_its_name_in_a_fresh_process():
    code = (
        "import luthier as lt; "
        "m = lt.methods.make('prompt', {'source': 'encoder', 'source.share': '0.7', 'start': 'uniform'}); "
        "assert (m.source.name, m.source.share, m.start.name) == ('encoder', 0.7, 'uniform')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
