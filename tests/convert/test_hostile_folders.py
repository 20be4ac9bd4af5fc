"""Folders that are damaged or hostile: each raises one line, and nothing of them is run, fetched or allocated."""

import json
import struct
import sys

import peft
import pytest
import torch
from peft_bed import edited, ours, wrapped
from safetensors.torch import save_file

from luthier.convert import from_peft
from luthier.errors import FileFormatError, LuthierError, RunError
from tests.host import bed

PLACE = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"
CONFIGS = {
    "lora": peft.LoraConfig(r=4, task_type="FEATURE_EXTRACTION"),
    "ia3": peft.IA3Config(task_type="FEATURE_EXTRACTION"),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=3, task_type="FEATURE_EXTRACTION"),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="FEATURE_EXTRACTION"),
}


@pytest.fixture(params=list(CONFIGS))
def folder(request, tmp_path):
    wrapped("bert", CONFIGS[request.param]).save_pretrained(str(tmp_path / "a"))
    return tmp_path / "a"


@pytest.fixture
def lora(tmp_path):
    wrapped("bert", CONFIGS["lora"]).save_pretrained(str(tmp_path / "a"))
    return tmp_path / "a"


def refused(folder, words, kind=FileFormatError):
    with pytest.raises(kind, match=words) as caught:
        from_peft(folder, bed.base("bert"))
    assert "\n" not in str(caught.value)


def test_a_missing_tensor_is_refused(folder):
    with edited(folder) as (_, tensors):
        del tensors[next(iter(tensors))]
    refused(folder, "missing|no tensors|does not select|not expected|not whole")


def test_an_extra_tensor_is_refused(folder):
    with edited(folder) as (_, tensors):
        tensors["base_model.model.encoder.layer.9.evil.weight"] = torch.zeros(2)
    refused(folder, "not expected")


def test_a_tensor_of_another_shape_is_refused(folder):
    with edited(folder) as (_, tensors):
        name = next(iter(tensors))
        tensors[name] = torch.zeros(tensors[name].shape[0] + 1, *tensors[name].shape[1:])
    refused(folder, "needs?")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_refused(folder, value):
    with edited(folder) as (_, tensors):
        next(iter(tensors.values())).view(-1)[0] = value
    refused(folder, "NaN or infinite")


def test_a_tensor_of_integers_is_refused(folder):
    with edited(folder) as (_, tensors):
        name = next(iter(tensors))
        tensors[name] = tensors[name].long()
    refused(folder, "floating-point")


def test_another_base_is_refused(folder):
    """peft's layout names no base, so that only its sizes and names can tell."""
    import transformers as tr

    config = bed.base("bert").config
    config.hidden_size, config.intermediate_size = 48, 96
    with pytest.raises(LuthierError, match="base"):
        from_peft(folder, tr.BertModel(config, add_pooling_layer=False))


def test_a_truncated_file_is_refused(folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    refused(folder, "not a sound safetensors file")


def test_a_header_that_asks_for_terabytes_is_refused_before_any_is_allocated(lora):
    entry = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    header = json.dumps({PLACE: entry}).encode()
    (lora / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    refused(lora, "not a sound safetensors file")


def test_a_large_tensor_is_refused_by_its_shape(lora, monkeypatch):
    from luthier.models import weights

    with edited(lora) as (_, tensors):
        tensors[PLACE] = torch.zeros(4096, 32)
    monkeypatch.setattr(weights, "read", lambda *_: pytest.fail("tensors were read"))
    refused(lora, "this model needs")


@pytest.mark.parametrize(
    "module", ["encoder.layer.0", "encoder.layer.0.attention.self", "embeddings.word_embeddings", ""]
)
def test_modules_that_are_not_linear_are_refused(lora, module):
    with edited(lora) as (config, tensors):
        tensors.clear()
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.zeros(4, 32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.zeros(32, 4)
        config["target_modules"] = [module]
    refused(lora, "no linear layer")


def test_pickles_are_refused_and_not_opened(lora):
    (lora / "adapter_model.safetensors").rename(lora / "adapter_model.bin")
    refused(lora, "pickled, which can run code")


def test_a_ready_safetensors_file_wins_over_a_pickle_beside_it(lora):
    (lora / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    assert from_peft(lora, bed.base("bert")).counts()["method"] > 0


def test_expressions_of_a_file_are_not_evaluated(lora):
    with edited(lora) as (config, _):
        config["target_modules"] = "(.*)*(.*)*(.*)*x"
    made = from_peft(lora, bed.base("bert"))
    assert "not evaluated" in made.about["notes"][0]
    with edited(lora) as (config, _):
        config["target_modules"], config["layers_pattern"] = ["query", "value"], ["((.*)*)*"]
        config["layers_to_transform"] = [0]
    assert "not evaluated" in from_peft(lora, bed.base("bert")).about["notes"][0]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1, "a": 2}', "[" * 100_000, '{"peft_type": 3}'])
def test_a_configuration_that_is_none_is_refused(lora, text):
    (lora / "adapter_config.json").write_text(text)
    refused(lora, "adapter_config.json")


@pytest.mark.parametrize("key,value", [("num_virtual_tokens", 4), ("num_virtual_tokens", None), ("num_virtual_tokens", "3"), ("token_dim", 8), ("num_layers", 2), ("num_attention_heads", 2), ("num_transformer_submodules", 2)])  # fmt: skip
def test_sizes_that_contradict_are_refused(tmp_path, key, value):
    wrapped("bert", CONFIGS["prefix"]).save_pretrained(str(tmp_path / "a"))
    with edited(tmp_path / "a") as (config, _):
        config[key] = value
    refused(tmp_path / "a", "needs|num_virtual_tokens|num_transformer_submodules")


def test_folders_that_are_none_are_refused(tmp_path):
    refused(tmp_path / "nowhere", "no folder", RunError)
    refused(tmp_path, "has no adapter_config.json")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    refused(tmp_path, "it has no adapter_model.safetensors")
    save_file({}, tmp_path / "adapter_model.safetensors")
    refused(tmp_path, "no tensors of adapted modules")


def test_the_base_is_untouched_by_a_refusal(lora):
    model = bed.base("bert")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with edited(lora) as (config, _):
        config["use_dora"] = True
    with pytest.raises(FileFormatError):
        from_peft(lora, model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_peft_itself_is_not_needed(lora, monkeypatch):
    from luthier.convert import to_peft

    for name in [n for n in sys.modules if n == "peft" or n.startswith("peft.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "peft", None)
    made = from_peft(lora, bed.base("bert"))
    to_peft(made, bed.base("bert"), lora.parent / "b")
    assert torch.equal(ours(made, "bert"), ours(from_peft(lora.parent / "b", bed.base("bert")), "bert"))
