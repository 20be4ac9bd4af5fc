"""Small random models of many architectures, and batches for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tr
from torch import nn

from luthier.host import Adaptation, Adapted, Part

torch.set_num_threads(1)
WIDTH, VOCABULARY = 32, 40


class Plain(nn.Module):
    """A module that no one has heard of: an embedding by a linear map, two blocks, no mask, no config."""

    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(WIDTH)
            self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

        def forward(self, h: torch.Tensor) -> torch.Tensor:
            return h + self.fc2(torch.tanh(self.fc1(self.norm(h))))

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(8, WIDTH)
        self.units = nn.ModuleList(Plain.Unit() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.read(x)
        for unit in self.units:
            h = unit(h)
        return h


def bert() -> nn.Module:
    config = tr.BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    return tr.BertModel(config, add_pooling_layer=False)


def llama(**options: Any) -> nn.Module:
    config = tr.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=128, initializer_range=0.3, pad_token_id=0, bos_token_id=1,
        eos_token_id=None, **options,
    )  # fmt: skip
    return tr.LlamaForCausalLM(config)


def gpt2(blocks: int = 3) -> nn.Module:
    config = tr.GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=blocks, n_head=4, n_positions=64, initializer_range=0.3,
        pad_token_id=0, bos_token_id=1, eos_token_id=None, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return tr.GPT2LMHeadModel(config)


def t5(blocks: int = 3, factor: float = 1.0) -> nn.Module:
    config = tr.T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=64, num_layers=blocks, num_heads=4,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0, initializer_factor=factor, pad_token_id=0,
        eos_token_id=None, dropout_rate=0.0,
    )  # fmt: skip
    return tr.T5ForConditionalGeneration(config)


def vit() -> nn.Module:
    config = tr.ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, image_size=8,
        patch_size=4, initializer_range=0.2,
    )  # fmt: skip
    return tr.ViTModel(config, add_pooling_layer=False)


def mamba() -> nn.Module:
    config = tr.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=3, state_size=4, pad_token_id=0, bos_token_id=1,
        eos_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    return tr.MambaForCausalLM(config)


BASES: dict[str, Callable[..., nn.Module]] = {
    "bert": bert, "llama": llama, "gpt2": gpt2, "t5": t5, "vit": vit, "mamba": mamba, "plain": Plain,
}  # fmt: skip


def base(name: str, **options: Any) -> nn.Module:
    """A fresh model, the same each time, frozen so that arithmetic does not depend on gradients."""
    torch.manual_seed(0)
    return BASES[name](**options).eval().requires_grad_(False)


def batch(name: str, rows: int = 4, tokens: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch with padding where the architecture knows masks: on the left for decoders, on the right otherwise."""
    rng = torch.Generator().manual_seed(seed)
    if name == "vit":
        return {"pixel_values": torch.randn(rows, 3, 8, 8, generator=rng)}
    if name == "plain":
        return {"x": torch.randn(rows, 5, 8, generator=rng)}
    mask = torch.ones(rows, tokens, dtype=torch.long)
    if rows > 1:
        mask[1, :3] = 0
        if name in ("bert", "t5"):
            mask[1] = mask[1].flip(0)
    out = {"input_ids": torch.randint(2, VOCABULARY, (rows, tokens), generator=rng), "attention_mask": mask}
    if name == "t5":
        out["decoder_input_ids"] = torch.randint(2, VOCABULARY, (rows, 5), generator=rng)
    return out


def result(adapted: Adapted, inputs: dict[str, Any]) -> torch.Tensor:
    """Logits, or hidden states where the model has no head; rows of padding left out by zeroing."""
    out = adapted(inputs)
    y = out.logits if out.logits is not None else out.hidden
    mask = inputs.get("attention_mask")
    if mask is not None and y.dim() == 3 and y.shape[1] == mask.shape[1]:
        y = y * mask[:, :, None]
    return y


def shaken(adaptation: Adaptation, amount: float = 0.2, seed: int = 2) -> Adaptation:
    """Every trained tensor moved away from its start."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adaptation.trainable().values():
            p.add_(torch.randn(p.shape, generator=rng) * amount)
    return adaptation


def adapted(part: Part, name: str, *, shake: bool = True) -> Adapted:
    """A base with one adaptation attached as "main"."""
    model = Adapted(base(name))
    made = Adaptation.new(part, model.base)
    model.attach("main", shaken(made) if shake else made)
    return model


def close(a: torch.Tensor, b: torch.Tensor, relative: float) -> None:
    """Equal up to `relative` of the larger magnitude."""
    scale = max(1.0, b.abs().max().item())
    assert (a - b).abs().max().item() <= relative * scale, (
        f"{(a - b).abs().max().item() / scale:.2e} > {relative:g}"
    )
