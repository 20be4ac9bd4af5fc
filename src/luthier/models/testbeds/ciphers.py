"""A small world in several languages, and models of it that are pretrained in a minute: for checks of what crosses languages.

A sentence lists things of one kind among names, cities and days. A language is a cipher of English: some letters change places
(`letters`), and the words may stand in reverse order, so that the translation is known exactly and its distance can be chosen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.models.testbeds.corpus import PERMUTED
from luthier.models.testbeds.small import SPECIAL, as_tokenizer, collated, loaded, train
from luthier.models.testbeds.words import CITIES, DAYS, KINDS, NAMES

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
OTHERS = tuple(word.lower() for word in (*NAMES, *CITIES, *DAYS))
"""Words that say nothing about the kind."""
SENTINELS = tuple(f"<extra_id_{i}>" for i in range(8))


@dataclass(frozen=True)
class Language:
    """A cipher of English. letters: those that change, one into the next, the last into the first; "": English itself, "*": all."""

    name: str
    letters: str = ""
    reverse: bool = False

    def word(self, word: str) -> str:
        to = PERMUTED if self.letters == "*" else ALPHABET
        if self.letters not in ("", "*"):
            to = to.translate(str.maketrans(self.letters, self.letters[1:] + self.letters[0]))
        return word.translate(str.maketrans(ALPHABET, to))

    def says(self, words: Sequence[str]) -> str:
        """English words as this language's text."""
        made = [self.word(w) for w in words]
        return " ".join(reversed(made) if self.reverse else made)


ENGLISH = Language("en")
NEAR = Language("near", "bghkv")
FAR = Language("far", "*", reverse=True)
TURNED = Language("turned", ALPHABET)


def sentence(rng: random.Random, kind: str, things: int = 2, others: int = 2) -> list[str]:
    """English words: things of the kind among others."""
    words = [*rng.sample(KINDS[kind], things), *rng.sample(OTHERS, others)]
    rng.shuffle(words)
    return words


def words(languages: Sequence[Language]) -> list[str]:
    """Every word of the world in these languages."""
    known = (*KINDS, *(w for members in KINDS.values() for w in members), *OTHERS)
    return list(dict.fromkeys(language.word(w) for language in languages for w in known))


def tokenizer(languages: Sequence[Language]) -> Any:
    """One token a word."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    special = (*SPECIAL, *SENTINELS)
    known = [*special, "\n", *words(languages)]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    inner.add_special_tokens([AddedToken(t, special=True) for t in special])
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    inner.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return as_tokenizer(inner)


def fresh(languages: Sequence[Language], kind: str, seed: int, width: int = 64, layers: int = 2) -> Any:
    """A Llama (kind="decoder") or a T5 ("encoder-decoder") of these languages with random weights."""
    import transformers

    words_of = tokenizer(languages)
    ids: dict[str, Any] = {"vocab_size": len(words_of), "pad_token_id": 0, "eos_token_id": 2}
    if kind == "decoder":
        config: Any = transformers.LlamaConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=1, **ids,
        )  # fmt: skip
        architecture: Any = transformers.LlamaForCausalLM
    else:
        ids["decoder_start_token_id"] = 0
        config = transformers.T5Config(
            d_model=width, d_kv=width // 4, d_ff=2 * width, num_layers=layers, num_decoder_layers=layers, num_heads=4,
            feed_forward_proj="gated-gelu", dropout_rate=0.0, **ids,
        )  # fmt: skip
        architecture = transformers.T5ForConditionalGeneration
    return loaded(architecture, config, words_of, seed)


def pretrained(
    languages: Sequence[Language],
    kind: str,
    pairs: Callable[[random.Random], tuple[str, str]],
    *,
    steps: int,
    batch: int,
    rate: float,
    seed: int = 0,
    **shape: int,
) -> Any:
    """A model of these languages that was trained from random weights on pairs of an input and an answer, drawn one by one."""
    model, rng = fresh(languages, kind, seed, **shape), random.Random(seed)

    def batches() -> Iterator[dict[str, Any]]:
        while True:
            inputs, targets = zip(*(pairs(rng) for _ in range(batch)), strict=True)
            yield collated(model.preprocess, inputs, targets)

    return train(model, batches(), steps=steps, rate=rate)
