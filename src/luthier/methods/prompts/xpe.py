"""XPE and dual soft prompts: a prompt made by an encoder of its own ("Cross-Prompt Encoder for Low-Performing Languages", 2025, S328).

[D; g(E); E(x)]    D: directly trained tokens, g(E): tokens made by a small net that they share (luthier.sources.encoder)
source.share: 1 the encoder alone (XPE), 0.7 and 0.3 dual prompts (D70, D30), 0 a plain prompt.
Not an identity at step 0; not a weight change: it cannot merge. `luthier.sources.settle` writes the prompt as an ordinary one.

For transfer across languages, train on a mixture of source languages, then use it as it is, or train the opened adaptation on
(inputs, encoder and head carried over).

Differs: no dropout behind the hidden layers unless source.dropout says so (the paper: 0.1); the rate of this row instead of
5e-5; the encoder is the MLP, without the public code's BiLSTM and attention variants.
"""

from __future__ import annotations

from luthier.host.part import Source, Start, method
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.sources.encoder import Encoder
from luthier.starts.vocabulary import Vocabulary


@method("xpe", targets="embedding", rate=1e-3)
class XPE(PromptTuning):
    source: Source = Encoder()  # the encoder, and the share of the tokens that it makes
    start: Start = Vocabulary()  # of the directly trained tokens
