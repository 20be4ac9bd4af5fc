"""Models whose layers see a window of tokens: prefixes stay visible, prompts are tokens like others, and caches change nothing."""

from __future__ import annotations

import pytest
import torch

from luthier.host import Adaptation, Adapted, Part
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.prefixes.p_tuning_v2 import PTuningV2
from luthier.methods.prompts.deep_prompt import DeepPrompt
from luthier.methods.prompts.prompt_tuning import PromptTuning
from tests.host import bed

WINDOW, NEW = 4, 5
METHODS = [PTuningV2(length=3), PromptTuning(length=3), DeepPrompt(length=2), LoRA(rank=2)]


def base(kind: str) -> torch.nn.Module:
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    shared = {"vocab_size": 60, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8}
    if kind == "mistral":
        config = transformers.MistralConfig(sliding_window=WINDOW, **sizes, **shared)
        return transformers.MistralForCausalLM(config).eval()
    types = ["sliding_attention", "full_attention"]
    config = transformers.Gemma3TextConfig(sliding_window=WINDOW, layer_types=types, **sizes, **shared)
    return transformers.Gemma3ForCausalLM(config).eval()


def padded() -> dict[str, torch.Tensor]:
    """Two rows of 9 and 6 tokens, padded on the left."""
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("kind", ["mistral", "gemma3"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_what_is_written_with_a_cache_is_what_each_row_says_without(kind: str, method: Part) -> None:
    model = Adapted(base(kind))
    made = Adaptation.new(method, model.base)
    with torch.no_grad():
        for p in made.trainable().values():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
        model.attach("main", made)
        batch = padded()
        written = model.generate(**batch, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
            alone = ids[mask.bool()][None]
            for _ in range(NEW):  # the whole row anew for each token: no padding and no cache
                out = model({"input_ids": alone, "attention_mask": torch.ones_like(alone)})
                alone = torch.cat([alone, out.logits[:, -1:].argmax(-1)], 1)
            assert torch.equal(written[row, 9:], alone[0, -NEW:])


def test_a_prefix_is_seen_from_beyond_the_window() -> None:
    """As if each query had the prefix beside its own window: attention of one layer, computed by hand."""
    model = Adapted(base("mistral"))
    seen: dict[str, torch.Tensor] = {}
    own = model.base.model.layers[0].self_attn
    names = ("q_proj", "k_proj", "v_proj")
    made = Adaptation.new(PTuningV2(length=3), model.base)
    model.attach("main", made)
    handles = [
        getattr(own, n).register_forward_hook(lambda m, a, out, n=n: seen.update({n: out})) for n in names
    ]
    handles.append(own.o_proj.register_forward_pre_hook(lambda m, a: seen.update(out=a[0])))
    ids = padded()["input_ids"][:1]
    with torch.no_grad():
        model({"input_ids": ids})
        for h in handles:
            h.remove()
        q, k, v = (seen[n].unflatten(-1, (-1, 8)).transpose(1, 2) for n in names)
        from transformers.models.mistral.modeling_mistral import apply_rotary_pos_emb

        cos, sin = model.base.model.rotary_emb(q, torch.arange(9)[None])
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        values = made.at()[0].values
        k, v = (torch.cat([values[n][None], x], -2).repeat_interleave(2, 1) for n, x in (("K", k), ("V", v)))
        i, j = torch.arange(9)[:, None], torch.arange(-3, 9)[None]
        visible = (j < 0) | ((j <= i) & (j > i - WINDOW))
        scores = (q @ k.mT / 8**0.5).masked_fill(~visible, float("-inf"))
        want = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    bed.close(seen["out"], want, 1e-5)
