"""What the real peft writes, luthier opens: outputs are peft's to 1e-5, and so are they after a second way there."""

import copy
import warnings

import peft
import pytest
import torch
import transformers as tr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft_bed import TYPES, base, batch, edited, opened, ours, same, theirs, wrapped
from safetensors.torch import load_file, save_file

from luthier.convert import from_peft, to_peft
from luthier.errors import FileFormatError, ModelError, OptionError
from luthier.host import Adaptation, Adapted, files
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.prefixes.p_tuning_v2 import PTuningV2
from luthier.methods.scaling.ia3 import IA3
from tests.host import bed

EVERY = ("bert", "llama", "gpt2", "t5")


def configs(name):
    kind = {"task_type": TYPES[name]}
    made = {
        "lora": peft.LoraConfig(r=4, lora_alpha=7, **kind),
        "lora-everywhere": peft.LoraConfig(
            r=3, use_rslora=True, target_modules="all-linear", lora_dropout=0.1, **kind
        ),
        "ia3": peft.IA3Config(**kind),
        "prompt": peft.PromptTuningConfig(num_virtual_tokens=3, **kind),
    }
    made["prefix"] = peft.PrefixTuningConfig(num_virtual_tokens=3, **kind)
    made["prefix-mlp"] = peft.PrefixTuningConfig(
        num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=16, **kind
    )
    return made


CASES = [(name, key) for name in EVERY for key in configs(name)]


def saved(name, config, folder, seed=1):
    """The peft model, and the adaptation that its folder is read as."""
    model = wrapped(name, config, seed)
    model.save_pretrained(str(folder))
    return model, from_peft(folder, bed.base(name))


@pytest.mark.parametrize("name,key", CASES)
def test_luthier_computes_what_peft_does_and_the_way_back_too(name, key, tmp_path):
    model, made = saved(name, configs(name)[key], tmp_path / "a")
    same(name, ours(made, name, dtype=torch.float64), theirs(copy.deepcopy(model).double(), name))
    to_peft(made, bed.base(name), tmp_path / "b")
    back = opened(
        name, tmp_path / "b"
    ).double()  # a random T5 amplifies float32's rounding, in either library
    same(name, ours(made, name, dtype=torch.float64), theirs(back, name))
    files.save(made, tmp_path / "c", "f")
    again = files.load(tmp_path / "c", bed.base(name), "f")
    assert torch.equal(ours(again, name), ours(made, name))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rank=st.integers(1, 16), alpha=st.integers(2, 6), root=st.booleans(), seed=st.integers(0, 99),
    targets=st.lists(st.sampled_from(["query", "key", "value", "attention.output.dense", "intermediate.dense"]), min_size=1, unique=True),
    ranks=st.dictionaries(st.sampled_from(["query", "layer.1.attention.self.value", "^encoder.layer.0.intermediate.dense"]), st.integers(1, 16)),
    alphas=st.dictionaries(st.sampled_from(["key", "2.attention.self.query", "attention.self.value"]), st.integers(2, 6)),
    layers=st.one_of(st.none(), st.integers(0, 2), st.lists(st.integers(0, 2), min_size=1, unique=True)),
)  # fmt: skip
def test_ranks_scalings_targets_and_layers(rank, alpha, root, seed, targets, ranks, alphas, layers, tmp_path_factory):  # fmt: skip
    config = peft.LoraConfig(
        task_type="FEATURE_EXTRACTION", r=rank, lora_alpha=alpha, use_rslora=root, target_modules=targets,
        rank_pattern=ranks, alpha_pattern=alphas, layers_to_transform=layers,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("a")
    model, made = saved("bert", config, folder / "a", seed)
    # in float64, and with scalings as people use them: larger updates amplify float32's rounding, peft's own by 2e-4 (seen)
    same("bert", ours(made, "bert", dtype=torch.float64), theirs(model.double(), "bert"), moved=1e-3)
    names = {n.removeprefix("base_model.model.") for n, m in model.named_modules() if hasattr(m, "lora_A")}
    assert {a.site.path for a in made.at()} == names


def test_options_and_targets_say_what_was_read(tmp_path):
    _, made = saved("llama", peft.LoraConfig(r=4, lora_alpha=7, task_type="CAUSAL_LM"), tmp_path / "a")
    assert made.method == LoRA(rank=4, alpha=7, targets="attention.query | attention.value")
    fitted = Adaptation.new(made.method, bed.base("llama"))
    assert [a.site.name for a in fitted.at()] == [a.site.name for a in made.at()]
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], layers_to_transform=[2])
    _, made = saved("llama", config, tmp_path / "b")
    assert made.method.targets == "model.layers.2.self_attn.q_proj"
    _, made = saved("bert", peft.IA3Config(task_type="FEATURE_EXTRACTION"), tmp_path / "c")
    assert made.method == IA3()
    assert "attention.output" in {a.site.role for a in made.at(1)}  # peft scales BERT's attention output too


def test_exclusions_and_expressions_of_targets(tmp_path):
    kind = {"task_type": "CAUSAL_LM"}
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], exclude_modules=["layers.1.self_attn.q_proj"], **kind)  # fmt: skip
    model, made = saved("llama", config, tmp_path / "a")
    same("llama", ours(made, "llama"), theirs(model, "llama"))
    assert len(made.at()) == 5 and made.about["notes"] == []
    config = peft.LoraConfig(target_modules=r".*layers\.[02]\.mlp\.(up|down)_proj", **kind)
    model, made = saved("llama", config, tmp_path / "b")
    same("llama", ours(made, "llama"), theirs(model, "llama"))
    assert len(made.at()) == 4 and "not evaluated" in made.about["notes"][0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_other_precision_become_float32(dtype, tmp_path):
    model = wrapped("bert", peft.LoraConfig(task_type="FEATURE_EXTRACTION"))
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.to(dtype).float()
    model.save_pretrained(str(tmp_path / "a"))
    file = tmp_path / "a" / "adapter_model.safetensors"
    save_file({k: v.to(dtype) for k, v in load_file(file).items()}, file)
    made = from_peft(tmp_path / "a", bed.base("bert"))
    assert {v.dtype for v in made.state().values()} == {torch.float32}
    same("bert", ours(made, "bert"), theirs(model, "bert"))


def test_names_with_the_body_in_front_or_without(tmp_path):
    kind = {"task_type": "FEATURE_EXTRACTION"}
    whole = tr.BertForMaskedLM(bed.base("bert").config).eval()
    whole.bert.load_state_dict(bed.base("bert").state_dict(), strict=True)
    model = wrapped("bert", peft.LoraConfig(**kind))
    model.save_pretrained(str(tmp_path / "body"))
    inner = from_peft(tmp_path / "body", whole)
    assert {a.site.path.split(".")[0] for a in inner.at()} == {"bert"}
    to_peft(inner, whole, tmp_path / "whole")
    back = from_peft(tmp_path / "whole", bed.base("bert"))
    same("bert", ours(back, "bert"), theirs(model, "bert"))


def classifier(seed=0):
    """A classification model of Transformers around the same body."""
    torch.manual_seed(seed)
    config = bed.base("bert").config
    config.num_labels = 3
    model = tr.BertForSequenceClassification(config).eval()
    model.bert.load_state_dict(bed.base("bert").state_dict(), strict=False)
    return model


def test_the_body_of_a_classifier_is_carried_when_its_head_is_dropped(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(classifier(), peft.LoraConfig(task_type="SEQ_CLS")).eval()
    for n, p in model.named_parameters():
        if "lora_" in n:
            torch.nn.init.normal_(p, std=0.2)
    model.save_pretrained(str(tmp_path / "a"))
    with pytest.raises(FileFormatError, match=r"modules_to_save=.*--drop modules_to_save"):
        from_peft(tmp_path / "a", bed.base("bert"))
    made = from_peft(tmp_path / "a", bed.base("bert"), drop=["modules_to_save"])
    assert "modules_to_save is left out" in made.about["notes"]
    with torch.no_grad():
        z = model.base_model.model.bert(**batch("bert")).last_hidden_state
    same("bert", ours(made, "bert"), z)
    with pytest.raises(OptionError, match="can't be dropped"):
        from_peft(tmp_path / "a", bed.base("bert"), drop=["bias"])


@pytest.mark.parametrize(
    "change,words",
    [
        ({"use_dora": True}, "lora_magnitude_vector is missing"),
        ({"bias": "all"}, 'bias="all"'),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["classifier"]}, "modules_to_save"),
        ({"target_parameters": ["mlp.weight"]}, "target_parameters"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights="pissa".*rewrites the base'),
        ({"init_lora_weights": {"a": 1}}, "init_lora_weights"),
        ({"invented": 3}, "invented=3.*does not know"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"peft_type": "XLORA"}, "peft_type='XLORA'"),
        ({"peft_type": None}, "no peft_type"),
        ({"alpha_pattern": {"(a+)+$": 3}}, "expression"),
        ({"alpha_pattern": [1]}, "alpha_pattern is no object"),
        ({"alpha_pattern": {"query": "8"}}, "no number"),
        ({"lora_alpha": -1}, "lora_alpha=-1"),
        ({"lora_alpha": True}, "lora_alpha=true"),
        ({"r": 10**12}, "r=1000000000000"),
        ({"r": 5}, "for rank 5 this model needs"),
        ({"rank_pattern": {"query": 5}}, "for rank 5 this model needs"),
        ({"rank_pattern": {"query": 0}}, "for rank 0 this model needs"),
        ({"target_modules": ["query", "value", "key"]}, "no tensors for it"),
        ({"target_modules": ["query"]}, "does not select"),
        ({"layers_to_transform": [0]}, "does not select"),
        ({"layers_to_transform": ["0"]}, "no list of layers"),
    ],
)  # fmt: skip
def test_keys_that_change_more_than_is_read_are_refused_by_name(change, words, tmp_path):
    saved("bert", peft.LoraConfig(r=4, task_type="FEATURE_EXTRACTION"), tmp_path / "a")
    with edited(tmp_path / "a") as (config, _):
        config.update(change)
    with pytest.raises(FileFormatError, match=words):
        from_peft(tmp_path / "a", bed.base("bert"))


def test_keys_that_are_off_or_decide_nothing_pass(tmp_path):
    model, _ = saved("bert", peft.LoraConfig(task_type="FEATURE_EXTRACTION"), tmp_path / "a")
    with edited(tmp_path / "a") as (config, _):
        config.update(
            invented=None, also_invented=False, auto_mapping={"parent_library": "os", "base_model_class": "system"},
            base_model_name_or_path="http://nowhere.invalid/model", revision="x", init_lora_weights="gaussian",
        )  # fmt: skip
    same("bert", ours(from_peft(tmp_path / "a", bed.base("bert")), "bert"), theirs(model, "bert"))


def test_a_prefix_of_an_encoder_decoder_is_no_decoders(tmp_path):
    model = wrapped("t5", peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="SEQ_2_SEQ_LM"))
    model.save_pretrained(str(tmp_path / "a"))
    with pytest.raises(FileFormatError, match=r"num_transformer_submodules=2.*another base"):
        from_peft(tmp_path / "a", bed.base("llama"))


def test_of_a_decoder_with_an_even_number_of_blocks_peft_reads_half_of_a_prefix(tmp_path):
    def model():
        torch.manual_seed(0)
        made = bed.t5(blocks=2).eval()
        made._prepare_encoder_decoder_kwargs_for_generation = None
        return made

    theirs = peft.get_peft_model(
        model(), peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="SEQ_2_SEQ_LM")
    ).eval()
    theirs.save_pretrained(str(tmp_path / "a"))
    base, x = model(), batch("t5")
    made, adapted = from_peft(tmp_path / "a", base), Adapted(base)
    with adapted.attached(made), torch.no_grad():
        bed.close(adapted(x).logits, theirs(**x).logits, 1e-5)
    first, second = made.at()[:2]
    assert torch.equal(first.values["K"], second.values["K"])  # both blocks have the first pair
    to_peft(made, base, tmp_path / "b")
    with torch.no_grad():
        second.values["K"] += 1
    with pytest.raises(ModelError, match=r"two blocks.*the same prefix"):
        to_peft(made, base, tmp_path / "c")


def test_what_a_t5_writes_under_a_prefix_in_front_is_what_it_says_without_a_cache():
    model = bed.adapted(PTuningV2(length=3, positions="front"), "t5")
    read = {k: v for k, v in batch("t5").items() if k != "decoder_input_ids"}
    with torch.no_grad():
        written = model.generate(**read, max_new_tokens=6, do_sample=False)
        for n in range(1, written.shape[1]):
            said = model({**read, "decoder_input_ids": written[:, :n]}).logits[:, -1].argmax(-1)
            assert torch.equal(said, written[:, n])
        plain = bed.adapted(PTuningV2(length=3), "t5")({**read, "decoder_input_ids": written}).logits
        front = model({**read, "decoder_input_ids": written}).logits
    assert (plain - front).abs().max() > 1e-2  # the bias is there


def test_a_prefix_in_front_needs_a_bias_by_distance():
    with pytest.raises(ModelError, match=r"biased by distance.*positions='own'"):
        bed.adapted(PTuningV2(length=3, positions="front"), "llama")


def test_a_prefix_is_refused_within_a_window(tmp_path):
    saved("llama", peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), tmp_path / "a")
    model = base("llama")
    model.config.sliding_window = 4
    with pytest.raises(ModelError, match="within a window"):
        from_peft(tmp_path / "a", model)


# -- positions after the prefix: what BERT and GPT-2 need to agree with peft


def test_positions_move_only_in_the_rows_that_a_prefix_serves():
    model = bed.adapted(PTuningV2(length=3, positions="after"), "bert")
    x = batch("bert")
    alone, bare = model(x).hidden, theirs(base("bert"), "bert")
    mixed = model({**x, "adaptation": ["main", None, "main", None]}).hidden
    keep = x["attention_mask"][:, :, None]
    bed.close(mixed[[0, 2]], alone[[0, 2]], 1e-5)
    bed.close((mixed * keep)[[1, 3]], (bare * keep)[[1, 3]], 1e-5)


def test_cached_generation_counts_positions_after_the_prefix():
    model = bed.adapted(PTuningV2(length=3, positions="after"), "gpt2")
    ids = batch("gpt2")["input_ids"][:2, :5]
    mask = torch.ones_like(ids)
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": mask}
    cached = model.base.generate(ids, **options)
    assert torch.equal(cached, model.base.generate(ids, use_cache=False, **options))
    other = bed.adapted(PTuningV2(length=3), "gpt2").base.generate(ids, **options)
    assert not torch.equal(cached, other)


def test_positions_that_do_not_fit_or_do_not_exist_are_refused():
    model = bed.adapted(PTuningV2(length=60, positions="after"), "bert")
    with pytest.raises(ModelError, match="at most 4 tokens"):
        model(batch("bert"))
    with pytest.raises(ModelError, match="no positions in a table"):
        bed.adapted(PTuningV2(length=3, positions="after"), "llama")
    with pytest.raises(OptionError, match="first block"):
        bed.adapted(PTuningV2(length=3, positions="after", targets="attention[1:]"), "bert")
