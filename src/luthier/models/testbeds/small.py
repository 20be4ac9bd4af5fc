"""Models of a few words that a check makes and pretrains for itself in a minute or two: decoders that sort, episodes, ciphers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
"""The first words of every vocabulary here, so that padding is 0, the begin 1 and the end 2."""


def as_tokenizer(inner: Any) -> Any:
    """Transformers' tokenizer around one of whole words, with the names of `SPECIAL`."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def decoder(words: Sequence[str], seed: int, *, width: int, layers: int, positions: int) -> Any:
    """A Llama with random weights and a token for each of these words, the special ones and the line break besides."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    known = [*SPECIAL, "\n", *words]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    config = LlamaConfig(
        vocab_size=len(known), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=positions, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return loaded(LlamaForCausalLM, config, as_tokenizer(inner), seed)


def loaded(architecture: Any, config: Any, tokenizer: Any, seed: int) -> Any:
    """A model of random weights drawn from `seed`, as `luthier.load` gives it."""
    import torch

    from luthier.models.load import load

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = architecture(config)
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return load(folder, device="cpu")


def train(model: Any, batches: Iterable[Mapping[str, Any]], *, steps: int, rate: float) -> Any:
    """Pretrain a model on so many batches (arguments of its forward, with labels), and freeze it again."""
    import torch

    base = model.base
    base.requires_grad_(True).train()
    optimiser = torch.optim.AdamW(base.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.05)
    for _, batch in zip(range(steps), batches):
        base(**batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(base.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    base.requires_grad_(False).eval()
    model.forget_fingerprint()
    return model


def collated(preprocess: Any, inputs: Sequence[str], targets: Sequence[str]) -> dict[str, Any]:
    """A batch of inputs and answers for a forward."""
    batch = preprocess.collate(preprocess.encode_text2text(inputs, targets))
    batch.pop("instruction", None)
    return dict(batch)
