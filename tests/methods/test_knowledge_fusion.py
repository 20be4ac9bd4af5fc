"""Knowledge adapters kept while the model is tuned (S009): what is combined, what stays, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.methods.adapters.bottleneck import Adapter
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.side.knowledge_adapter import KnowledgeAdapter
from luthier.methods.side.knowledge_fusion import NOTE, KnowledgeFusion
from luthier.methods.side.lst import LST
from luthier.train.fit import fit
from tests.host import bed
from tests.train import train_testbed as texts


def adapters(base, *reads):
    return {
        k: bed.shaken(Adaptation.new(KnowledgeAdapter(reads=r, layers=1), base), 0.1, i)
        for i, (k, r) in enumerate(zip("abc", reads))
    }


def last_state(base, model, batch):
    """What enters the norm behind the last decoder block."""
    norm = base.decoder.final_layer_norm if hasattr(base, "decoder") else base.model.norm
    seen = []
    handle = norm.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    with torch.no_grad():
        model(batch)
    handle.remove()
    return seen[-1]


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("how", ["mean", "gate"])
def test_at_step_0_it_is_the_mean_of_the_models_state_and_of_each_adapter_by_itself(name, how):
    base, batch = bed.base(name), bed.batch(name)
    members = adapters(base, "-1", "0, -1")
    model = Adapted(base)
    states = [last_state(base, model, batch)]
    for one in members.values():
        with model.attached(one):
            states.append(last_state(base, model, batch))
    made = Adaptation.new(KnowledgeFusion(how=how), base, members=members)
    with model.attached(made):
        bed.close(last_state(base, model, batch), torch.stack(states).mean(0), 1e-5)


def test_the_gate_weighs_states_token_by_token():
    base, batch = bed.base("llama"), bed.batch("llama")
    made = Adaptation.new(KnowledgeFusion(), base, members=adapters(base, "-1", "-1"))
    (gate,) = [p for n, p in made.trainable().items() if n.endswith(".G")]
    model = Adapted(base)
    with torch.no_grad():
        gate.copy_(torch.randn(gate.shape, generator=torch.Generator().manual_seed(0)) * 3)
        with model.attached(made):
            (weights,) = model(batch).notes[NOTE]
    assert weights.shape == (*batch["input_ids"].shape, 3)
    bed.close(weights.sum(-1), torch.ones(weights.shape[:-1]), 1e-6)
    assert weights.std((0, 1)).min() > 1e-3 and (weights - 1 / 3).abs().max() > 0.05


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("beams", [1, 2])
def test_several_adapters_write_the_same_with_a_cache(name, beams):
    base = bed.base(name)
    made = Adaptation.new(KnowledgeFusion(), base, members=adapters(base, "-1", "0, 1, -1"))
    model = Adapted(base)
    model.attach("main", bed.shaken(made, 0.05))
    given = {k: v for k, v in bed.batch(name).items() if not k.startswith("decoder")}
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams}
    with torch.no_grad():
        cached = model.generate(**given, use_cache=True, **options)
        assert torch.equal(cached, model.generate(**given, use_cache=False, **options))


def test_tuning_leaves_base_and_adapters_as_they_were_and_a_file_holds_it_whole(tmp_path):
    model, data = texts.model("encoder-decoder"), texts.data("text2text")
    facts = fit(model, data, KnowledgeAdapter(layers=1), steps=3, rate=0.01, progress=False)
    base = {k: v.clone() for k, v in model.base.state_dict().items()}
    held = {k: v.clone() for k, v in facts.adaptation.state().items()}
    fitted = fit(model, data, KnowledgeFusion(), members={"kb": facts}, steps=3, rate=0.01, progress=False)
    assert all(torch.equal(v, base[k]) for k, v in model.base.state_dict().items())
    for state in (facts.adaptation.state(), fitted.adaptation.members["kb"].state()):
        assert state.keys() == held.keys() and all(torch.equal(v, held[k]) for k, v in state.items())
    tuned = fitted.adaptation.placed()[0].at["decoder/block/0/layer/0/SelfAttention/q"].values["weight"]
    assert not torch.equal(tuned, model.base.decoder.block[0].layer[0].SelfAttention.q.weight)
    inputs = list(data.test.inputs[:4])
    fitted.save(tmp_path / "it")
    from luthier.adaptations import load_adaptation

    assert load_adaptation(tmp_path / "it", model).predict(inputs) == fitted.predict(inputs)


def test_another_method_may_tune_at_its_own_plan_and_rate():
    model, data = texts.model("encoder-decoder"), texts.data("text2text")
    facts = Adaptation.new(KnowledgeAdapter(layers=1), model.base)
    tuned = KnowledgeFusion(tuning=LoRA(rank=2, optimiser="lora_pro"))
    assert tuned.phases()[0].optimiser is LoRA(optimiser="lora_pro").phases()[0].optimiser
    seen = {}

    class Watched(KnowledgeFusion):
        def in_proportion(self, named, run):
            made = super().in_proportion(named, run)
            seen.update({g["peak"]: len(g["params"]) for g in made.param_groups})
            return made

    for rate, want in ((None, {1e-3, 5e-5}), (1e-2, {1e-2, 5e-4})):
        seen.clear()
        fit(model, data, Watched(), members={"kb": facts}, steps=1, rate=rate, progress=False)
        assert {round(r, 8) for r in seen} == want
        assert min(seen.values()) == 1  # the gate's one matrix


def test_what_it_cannot_be_made_of_is_refused():
    base = bed.base("llama")
    with pytest.raises(OptionError, match="refers to trained knowledge adapters"):
        Adaptation.new(KnowledgeFusion(), base)
    with pytest.raises(OptionError, match="is no knowledge adapter"):
        Adaptation.new(KnowledgeFusion(), base, members={"a": Adaptation.new(LST(reduction=2), base)})
    with pytest.raises(OptionError, match="walks through the blocks"):
        Adaptation.new(KnowledgeFusion(tuning=LST()), base, members=adapters(base, "-1"))
    blocks = Adaptation.new(Adapter(width=2, targets="block"), base)
    with pytest.raises(OptionError, match="is no knowledge adapter"):
        Adaptation.new(KnowledgeFusion(), base, members={"a": blocks})
