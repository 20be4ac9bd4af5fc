"""What luthier writes, the real peft opens, and its outputs are ours to 1e-5."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from peft_bed import base, batch, fresh, opened, ours, same, theirs

from luthier.convert import from_peft, to_peft
from luthier.convert.names import ends, exactly, hits
from luthier.errors import ModelError, RunError
from luthier.host import Adaptation
from luthier.host.part import Start
from luthier.methods.adapters.bottleneck import Adapter
from luthier.methods.low_rank.chain import ChainOfLoRA
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.low_rank.pissa import PiSSA
from luthier.methods.low_rank.rslora import RsLoRA
from luthier.methods.low_rank.soma import SoMA
from luthier.methods.prefixes.p_tuning_v2 import PTuningV2
from luthier.methods.prompts.dpt import DPT
from luthier.methods.prompts.mpt import MPT
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.methods.prompts.residual_prompt import ResidualPrompt
from luthier.methods.prompts.spt import SPT
from luthier.methods.prompts.xpe import XPE
from luthier.methods.prompts.xprompt import XPrompt
from luthier.methods.scaling.ia3 import IA3, ScaledOutputs
from tests.host import bed

EVERY = ("bert", "llama", "gpt2", "t5")
LINEAR = "attention.query | attention.key | attention.value | attention.output | mlp.*"
TABLE = ("bert", "gpt2")


def methods(name):
    positions = "front" if name == "t5" else "after" if name in TABLE else "own"
    where = "decoder:attention" if name == "t5" else "attention"
    made = {
        "lora": LoRA(rank=4),
        "lora-everywhere": LoRA(rank=3, alpha=5, targets=LINEAR),
        "lora-last-layer": LoRA(rank=2, targets="attention.value[-1:]"),
        "ia3": IA3(),
        "scaled-values": ScaledOutputs(targets="attention.value[0,2]"),
        "prompt": PromptTuning(length=3),
    }
    made["prefix"] = PTuningV2(length=3, positions=positions, targets=where)
    made["prefix-mlp"] = PTuningV2(length=5, reparameterise=True, positions=positions, targets=where)
    return made


CASES = [(name, key) for name in EVERY for key in methods(name)]


@pytest.mark.parametrize("name,key", CASES)
def test_peft_computes_what_luthier_does_and_the_way_back_too(name, key, tmp_path):
    made = fresh(name, methods(name)[key])
    assert to_peft(made, bed.base(name), tmp_path / "a") == []
    z = theirs(opened(name, tmp_path / "a"), name)
    same(name, ours(made, name), z)
    back = from_peft(tmp_path / "a", bed.base(name))
    same(name, ours(back, name), z)
    assert all(
        "filled with zeros" in n for n in back.about["notes"]
    )  # a slice has another rank than the whole


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("kind", [DPT, MPT, ResidualPrompt, SPT, XPE], ids=lambda k: k.name)
def test_a_prompt_made_by_a_source_is_settled_on_the_way(name, kind, tmp_path):
    source = kind().source
    made = fresh(name, kind(length=4, source=replace(source, rank=2) if kind is DPT else source))
    assert to_peft(made, bed.base(name), tmp_path / "a") == []
    z = theirs(opened(name, tmp_path / "a"), name)
    same(name, ours(made, name), z)
    back = from_peft(tmp_path / "a", bed.base(name))
    assert back.method == PromptTuning(length=4)
    same(name, ours(back, name), z)


def test_a_scaled_prompt_inside_the_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="in front of the embedded text"):
        to_peft(fresh("bert", SPT(length=3, inner=1)), bed.base("bert"), tmp_path / "a")


def test_peft_adapts_exactly_the_chosen_modules(tmp_path):
    made = fresh("bert", LoRA(rank=2, targets="attention.output[1] | mlp.down[0]"))
    to_peft(made, bed.base("bert"), tmp_path / "a")
    found = [n for n, m in opened("bert", tmp_path / "a").named_modules() if hasattr(m, "lora_A")]
    assert [n.removeprefix("base_model.model.") for n in found] == [
        "encoder.layer.0.output.dense",
        "encoder.layer.1.attention.output.dense",
    ]


def test_names_that_are_suffixes_of_others_become_an_expression():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up = torch.nn.Linear(2, 2)
            self.other = torch.nn.ModuleDict({"up": torch.nn.Linear(2, 2)})
            self.xup = torch.nn.Linear(2, 2)

    assert exactly(Twice(), ["other.up"]) == ["other.up"]
    assert exactly(Twice(), ["up"]) == "up"  # a string is an expression, which must match whole
    assert exactly(Twice(), ["up", "other.up"]) == ["up", "other.up"]
    assert exactly(Twice(), ["up", "other.up"], ends) == r"up|other\.up"  # feedforward_modules: no dot needed
    assert hits(["up"], "other.up") and not hits(["up"], "xup") and ends(["up"], "xup")


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_weighted_sum_of_lora_is_one_adapter(name, tmp_path):
    a, b = (
        fresh(name, LoRA(rank=4)),
        fresh(name, LoRA(rank=2, alpha=3, targets="*attention.query | mlp.up"), seed=5),
    )
    mixed = 0.7 * a - 0.3 * b
    to_peft(mixed, bed.base(name), tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["rank_pattern"] and config["alpha_pattern"]
    z = theirs(opened(name, tmp_path / "a"), name)
    same(name, ours(mixed, name), z)
    same(name, ours(from_peft(tmp_path / "a", bed.base(name)), name), z)


def test_slices_of_a_fused_projection_share_one_adapter(tmp_path):
    to_peft(fresh("gpt2", LoRA(rank=4)), bed.base("gpt2"), tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["fan_in_fan_out"]) == (8, 32, True)
    back = from_peft(tmp_path / "a", bed.base("gpt2"))
    assert back.method == LoRA(rank=8, alpha=32, targets="attention.qkv")


def test_an_anchored_start_keeps_its_effect_subtracted(tmp_path):
    class Anchored(Start):
        anchored = True

        def fill(self, site, specs, weight, statistics, rng):
            return {k: torch.randn(s.shape, generator=rng) * 0.3 for k, s in specs.items()}

    made = fresh("bert", LoRA(rank=2, start=Anchored()))
    assert len(made.at()[0].anchor) == 2
    to_peft(made, bed.base("bert"), tmp_path / "a")
    z = theirs(opened("bert", tmp_path / "a"), "bert")
    same("bert", ours(made, "bert"), z)
    same("bert", ours(from_peft(tmp_path / "a", bed.base("bert")), "bert"), z)


@pytest.mark.parametrize(
    "method", [RsLoRA(rank=3), PiSSA(rank=2), SoMA(rank=2), ChainOfLoRA(rank=2)], ids=lambda m: m.name
)
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_low_rank_methods_are_adapters_of_their_rank_or_with_their_start_of_twice_it(name, method, tmp_path):
    made = fresh(name, method)
    to_peft(made, bed.base(name), tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    slices = max(Counter(at.site.path for at in made.at()).values())
    most = method.rank * (1 + method.start.anchored) * slices
    assert max([config["r"], *config["rank_pattern"].values()]) == most
    z = theirs(opened(name, tmp_path / "a"), name)
    same(name, ours(made, name), z)
    same(name, ours(from_peft(tmp_path / "a", bed.base(name)), name), z)


def test_half_precision_bases_take_the_adapter(tmp_path):
    to_peft(fresh("llama", LoRA(rank=4)), bed.base("llama").bfloat16(), tmp_path / "a")
    same("llama", ours(from_peft(tmp_path / "a", bed.base("llama")), "llama"), theirs(opened("llama", tmp_path / "a"), "llama"))  # fmt: skip


@pytest.mark.parametrize(
    "name,make,words",
    [
        ("bert", lambda a: a, "adapter can't be one adapter of peft"),
        ("bert", lambda a: fresh("bert", XPrompt(length=4, pieces=4)), "xprompt can't be"),
        ("bert", lambda a: fresh("bert", LoRA()) + fresh("bert", IA3()), "one kind at a time"),
        ("bert", lambda a: 0.5 * fresh("bert", IA3()), "with coefficient 1"),
        ("bert", lambda a: fresh("bert", PromptTuning(length=2)) + fresh("bert", PromptTuning(length=2)), "no additive effect"),
        ("bert", lambda a: fresh("bert", PTuningV2(length=3)), "positions='after'"),
        ("llama", lambda a: fresh("llama", PTuningV2(length=3, targets="attention[1:]")), "all 3 layers"),
        ("t5", lambda a: fresh("t5", PTuningV2(length=3, positions="front")), "all 3 layers"),
        ("t5", lambda a: fresh("t5", PTuningV2(length=3, targets="decoder:attention")), "positions='front'"),
        ("t5", lambda a: fresh("t5", PromptTuning(length=3, targets="decoder.embedding")), "embedding"),
        ("vit", lambda a: fresh("vit", PromptTuning(length=3)), "embedded text"),
    ],
)  # fmt: skip
def test_what_peft_has_no_equal_of_is_refused(name, make, words, tmp_path):
    with pytest.raises(ModelError, match=words):
        to_peft(make(fresh("bert", Adapter(width=4))), bed.base(name), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_prefix_is_refused_where_positions_mean_something_else(tmp_path):
    model = bed.llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    made = Adaptation.new(PTuningV2(length=2), model)
    with pytest.raises(ModelError, match="knows positions in a way"):
        to_peft(made, model, tmp_path / "a")


def test_linear_rotary_scaling_is_turned_with_the_models_own_angles(tmp_path):
    import peft

    def build():
        torch.manual_seed(0)
        return bed.llama(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}).eval()

    made = bed.shaken(Adaptation.new(PTuningV2(length=4), build()))
    to_peft(made, build(), tmp_path / "a")
    model = bed.Adapted(build())
    model.attach("a", made)
    x = batch("llama")
    with torch.no_grad():
        y = model.eval()(x).logits
        z = peft.PeftModel.from_pretrained(build(), str(tmp_path / "a")).eval()(**x).logits
    keep = x["attention_mask"][:, :, None]
    bed.close(y * keep, z * keep, 1e-5)


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="not a peft adapter"):
        to_peft(fresh("bert", LoRA(rank=2)), bed.base("bert"), tmp_path / "a")
    assert (tmp_path / "a" / "thesis.txt").read_text() == "years of work"
    to_peft(fresh("bert", LoRA(rank=2)), bed.base("bert"), tmp_path / "b")
    to_peft(fresh("bert", LoRA(rank=3)), bed.base("bert"), tmp_path / "b")  # its own kind is
    assert json.loads((tmp_path / "b" / "adapter_config.json").read_text())["r"] == 3


def test_nothing_of_this_machine_is_written(tmp_path):
    class Model:
        base, name, fingerprint = base("bert"), str(tmp_path), "0" * 64

    to_peft(fresh("bert", LoRA(rank=2)), Model, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    Model.name = "organisation/model"
    to_peft(fresh("bert", LoRA(rank=2)), Model, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "organisation/model"
