"""LoRA on TREC's first 2,000 rows, 3 epochs, MiniLM: the whole job here and with peft and the Hugging Face Trainer, in turns.

python bench/trec_whole_job.py DATA [--seeds 3] [--threads 2]
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timing

ROWS, EPOCHS, BATCH, RANK = 2000, 3, 32, 8


def read(path: Path, limit: int | None = None) -> tuple[list[str], list[str]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()][:limit]
    return [r["text"] for r in rows], [r["label_name"] for r in rows]


def ours(folder: Path, seed: int) -> tuple[float, float]:
    """(accuracy on the test file, seconds from the first line of data to the score)."""
    import luthier as lt

    began = time.perf_counter()
    model = lt.load("builtin:minilm", device="cpu")
    train, test = read(folder / "train.jsonl", ROWS), read(folder / "test.jsonl")
    data = lt.data(
        {"text": train[0], "label": train[1]}, test={"text": test[0], "label": test[1]}, split=(1, 0, 0)
    )
    fitted = lt.fit(
        model,
        data,
        method=lt.methods.LoRA(rank=RANK),
        epochs=EPOCHS,
        batch_size=BATCH,
        seed=seed,
        progress=False,
    )
    return fitted.metrics["test"]["accuracy"], time.perf_counter() - began


def peer(folder: Path, seed: int, rate: float) -> tuple[float, float]:
    """The same with peft's LoRA on the same layers and transformers.Trainer, dynamic padding, mean pooling and a linear head."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch import nn
    from transformers import (
        AutoModel,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from luthier.models.builtin import locate

    began = time.perf_counter()
    set_seed(seed)
    where = str(locate("minilm"))
    tokenizer = AutoTokenizer.from_pretrained(where)
    train, test = read(folder / "train.jsonl", ROWS), read(folder / "test.jsonl")
    names = sorted(set(train[1]))

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = LoraConfig(
                r=RANK, lora_alpha=2 * RANK, target_modules=["query", "value"], lora_dropout=0.0
            )
            self.body = get_peft_model(AutoModel.from_pretrained(where), config)
            self.head = nn.Linear(384, len(names))

        def forward(
            self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None, labels: Any = None
        ) -> dict:
            hidden = self.body(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state
            mask = attention_mask[:, :, None].float()
            logits = self.head((hidden * mask).sum(1) / mask.sum(1))
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    def rows(texts: list[str], labels: list[str]) -> list[dict]:
        encoded = tokenizer(texts, truncation=True, max_length=256)
        return [
            {**{k: v[i] for k, v in encoded.items()}, "labels": names.index(labels[i])}
            for i in range(len(texts))
        ]

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            out, num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH, per_device_eval_batch_size=64, learning_rate=rate,
            warmup_steps=11, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=seed, use_cpu=True,
        )  # fmt: skip
        trainer = Trainer(
            Classifier(),
            arguments,
            train_dataset=rows(*train),
            data_collator=DataCollatorWithPadding(tokenizer),
        )  # type: ignore[arg-type]
        trainer.train()
        logits = trainer.predict(rows(*test)).predictions  # type: ignore[arg-type]
    found = torch.as_tensor(logits).argmax(-1).tolist()
    accuracy = sum(names[p] == y for p, y in zip(found, test[1], strict=True)) / len(found)
    return accuracy, time.perf_counter() - began


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    given = timing.arguments(
        __doc__, argv, data={"positional": True, "type": Path}, seeds={"type": int, "default": 3},
        peer_rate={"type": float, "default": 2e-3},
    )  # fmt: skip
    import transformers

    runs: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
    for seed in range(given.seeds):
        runs["ours"].append(ours(given.data, seed))
        runs["peer"].append(peer(given.data, seed, given.peer_rate))
        print({side: found[-1] for side, found in runs.items()}, flush=True)
    version = f"{timing.peft_version()}, transformers {transformers.__version__}, Trainer at rate {given.peer_rate:g}"
    taken = {side: [t for _, t in found] for side, found in runs.items()}
    right = {side: statistics.mean(a for a, _ in found) for side, found in runs.items()}
    seconds = timing.beside("whole job on TREC", taken, 0.6, version)
    wrong = timing.figure(
        "whole job on TREC, errors on the test file", 1 - right["ours"], 0.05, "share", peer=1 - right["peer"],
        peer_version=version, runs=runs,
    )  # fmt: skip
    return timing.write("trec_whole_job", [seconds, wrong], given)


if __name__ == "__main__":
    main()
