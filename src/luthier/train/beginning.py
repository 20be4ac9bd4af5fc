"""What a run begins with: the method, the output head that the task needs, and a fresh adaptation."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from luthier.data.entities import most_frequent_tag
from luthier.errors import ModelError, OptionError
from luthier.host.options import make
from luthier.host.places import OutputHead
from luthier.signals.choose import parsed
from luthier.signals.objectives import Standardisation
from luthier.train.batches import encode, in_order
from luthier.train.choices import ranks
from luthier.train.fitted import TARGETS, UNKNOWN, preprocess_card
from luthier.train.settings import Settings

CALIBRATION_ROWS = 256
"""Training rows that statistics for a start are gathered on, unless it says otherwise."""


def as_method(method: Any) -> Any:
    """A method by its name, or as it is."""
    if isinstance(method, str):
        from luthier.methods import make

        method = make(method)
    if any(isinstance(part, OutputHead) for part in method.parts()):
        raise OptionError(
            f"{method.name} is an output head: fit adds the one that the task needs. Choose a method, e.g. lora; compare shows a linear probe."
        )
    return method


def head_for(model: Any, data: Any, signal: str = "auto") -> Any:
    """The output part that a task needs: none for text-to-text, where the model's own head writes; `choices` to rank answers."""
    task = data.task
    if task.kind == "text2text":
        return None
    if task.kind == "retrieval":
        from luthier.methods.embedding import Embedding

        return Embedding(pooling=model.pooling, width=hidden_width(model, data))
    name, given = parsed(signal)
    if name in ("choices", "t_few"):
        from luthier.methods.choices import Choices

        return Choices(classes=len(task.labels))
    pooling: Any = "none" if task.kind == "tagging" else model.pooling
    shape = {"classes": len(task.labels) or 1, "pooling": pooling, "width": hidden_width(model, data)}
    if name == "infoprompt":
        from luthier.methods.info_head import InfoHead

        return make(InfoHead, {**given, **shape})
    from luthier.methods.heads import LinearHead

    return LinearHead(**shape)


def hidden_width(model: Any, data: Any) -> int:
    """Numbers in one hidden state: what the configuration says, else what the model gives for one row."""
    width = getattr(getattr(model.base, "config", None), "hidden_size", None)
    if isinstance(width, int):
        return width
    from luthier.host import Adapted

    row = encode(model.preprocess, data.train.select([0]), data.task, targets=False).batch([0], model.device)
    with torch.no_grad():
        hidden = Adapted(model.base)(row).hidden
    if hidden is None:
        raise ModelError(f"{model.name} gives no hidden states for a head to read: pass head=... yourself.")
    return int(hidden.shape[-1])


def new_adaptation(
    method: Any,
    model: Any,
    data: Any,
    settings: Settings,
    head: Any,
    members: Mapping[str, Any] | None,
    after: Any = None,
) -> Any:
    """A fresh adaptation that carries its task and its preprocessing. after: an adaptation that it begins with."""
    from luthier.host import Adaptation
    from luthier.host.following import following
    from luthier.train.carry import carried, goes_on, take_over

    on = after is not None and goes_on(after, method)
    start = after if not on else None
    made = (partial(following, after) if on else Adaptation.new)(
        method,
        model.base,
        head=head,
        seed=settings.seed,
        members=members,
        statistics=statistics_for(method, model, data, settings.batch_size, head, settings.seed)
        if start is None
        else carried(start, model.base, method),
        reached=reached_modules(method, model, data, head),
    )
    if start is not None:
        take_over(made, start)
    made.task, made.preprocess = data.task.model_dump(mode="json"), preprocess_card(model)
    made.about = {**made.about, "base": base_name(model)}
    if data.task.kind == "regression":
        made.about[TARGETS] = asdict(Standardisation.of(data.train.targets))
    if data.task.kind == "tagging":
        made.about[UNKNOWN] = most_frequent_tag(data.task.labels, data.train.targets)
    if data.task.kind == "text2text":
        made.about["max_new_tokens"] = settings.max_new_tokens
    return made


def base_name(model: Any) -> str:
    """What a card says of the base: a name, never a path."""
    return model.name if model.name.startswith("builtin:") else Path(model.name).name


def reached_modules(method: Any, model: Any, data: Any, head: Any) -> set[str] | None:
    """Paths of modules that the task's loss reaches, for methods that train "everything"; None for others."""
    if not any(p.wherever for p in method.parts()):
        return None
    from luthier.host import Adapted
    from luthier.host.probe import reached

    adapted = Adapted(model.base)
    row = encode(model.preprocess, data.train.select([0]), data.task, head=head)
    batch, inside = row.batch([0], model.device), head is not None and not ranks(head)

    def loss() -> torch.Tensor:
        out = adapted(batch, body=inside)
        return (out.hidden if inside else out.logits).float().pow(2).mean()

    return reached(model.base, loss)


def statistics_for(
    method: Any, model: Any, data: Any, batch_size: int, head: Any = None, seed: int = 0
) -> dict[str, dict[str, Any]] | None:
    """{site: {statistic: value}} of the base's activations on training rows, where a start asks for any."""
    from luthier.host import Adapted
    from luthier.host.calibrate import calibrate

    asking = [p for p in method.parts() if p.start.needs or p.start.uses]
    if not asking:
        return None
    adapted = Adapted(model.base)
    found: dict[str, dict[str, Any]] = {}
    for part in asking:
        sites, asks = part.sites(adapted.structure), part.start.asks(part)
        said = {need: FROM_TASK[need](model, data) for need in asks if need in FROM_TASK}
        asked = {need: how for need, how in asks.items() if need not in said}
        here: dict[str, dict[str, Any]] = {s.name: {} for s in sites}
        if asked:
            batches, body = calibration_batches(part.start, model, data, batch_size, head, seed)
            here = calibrate(adapted, sites, asked, batches, partial(part.start.enough, part), body=body)
        for name, values in here.items():
            found[name] = {**found.get(name, {}), **values, **said}
    return found


def calibration_batches(
    start: Any, model: Any, data: Any, batch_size: int, head: Any, seed: int
) -> tuple[Iterable[dict[str, Any]], bool]:
    """Rows that a start's statistics are gathered on: drawn from the training rows, or from the data that the start names;
    and whether only the model's body reads them, as where a head of ours does the task."""
    source, count = getattr(start, "data", ""), getattr(start, "rows", CALIBRATION_ROWS)
    body = head is not None and not ranks(head)
    if source:
        from luthier.data.load import load_data

        data, head = load_data(source), None
        body = data.task.kind != "text2text"
    drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:count]
    rows = data.train.select(drawn.tolist())
    encoded = encode(model.preprocess, rows, data.task, head=head)
    size = max(1, batch_size // encoded.per_row)
    cuts = range(0, len(encoded), size)  # not by length: the first batches must stand for the others
    return (encoded.batch(range(i, min(i + size, len(encoded))), model.device) for i in cuts), body


def label_ids(model: Any, data: Any) -> list[list[int]]:
    """The tokens of every label's name. OptionError where the task has no names for labels."""
    if not data.task.labels:
        raise OptionError(
            f"start 'label_words' needs labels with names, which a task of {data.task.kind} has none of. Choose start=vocabulary."
        )
    tokenize = tokenizer_of(model, data)
    return [tokenize(str(label)) for label in data.task.labels]


def tokenizer_of(model: Any, data: Any) -> Callable[[str], list[int]]:
    """text -> token ids, without special tokens. OptionError for a model that reads no text."""
    tokenizer = getattr(model.preprocess, "tokenizer", None)
    if tokenizer is None:
        raise OptionError(f"{model.name} has no tokenizer: words are no start for it. Choose start=normal.")
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def vocabulary_of(model: Any, data: Any) -> torch.Tensor:
    """(tokens, width): the embeddings of the model's tokens. OptionError for a model that has none."""
    table = model.base.get_input_embeddings() if hasattr(model.base, "get_input_embeddings") else None
    if not isinstance(table, torch.nn.Embedding):
        raise OptionError(f"{model.name} embeds no tokens: words are no start for it. Choose start=normal.")
    return table.weight.detach()


def demonstrations_of(model: Any, data: Any) -> Callable[[int, int], list[tuple[list[int], list[int]]]]:
    """(shots, seed) -> for each training row drawn (ids, kinds): 0 for a token of the input, -1 of the format, 1 of the answer.

    OptionError for a task whose answers are no texts, for models that do not write after what they read, and for too few rows.
    """
    pre, train, labels = model.preprocess, data.train, data.task.labels
    if (
        data.task.kind not in ("text2text", "classification")
        or model.kind != "decoder"
        or not model.generates
    ):
        raise OptionError(
            f"Demonstrations are inputs with their answers as texts, for a decoder that writes: not for {data.task.kind} by "
            f"{model.name} ({model.kind}). Use prompt_tuning."
        )
    special, tokenize = set(pre.tokenizer.all_special_ids), tokenizer_of(model, data)
    between = len(tokenize(pre.separator)) if pre.separator else 0

    def text(x: Any) -> str:
        return x if isinstance(x, str) else (pre.separator or "\n").join(x)

    def rows(shots: int, seed: int) -> list[tuple[list[int], list[int]]]:
        if shots > len(train):
            raise OptionError(
                f"{shots} demonstrations are asked for, and there are {len(train)} training rows."
            )
        found = drawn_in_turn(train.targets if labels else [0] * len(train), shots, seed)
        answers = [str(labels[int(train.targets[i])]) if labels else train.targets[i] for i in found]
        made = []
        for row in pre.encode_text2text([text(train.inputs[i]) for i in found], answers):
            ids, front = row["input_ids"], sum(row["instruction"])
            kinds = [-1 if i in special else 0 for i in ids[:front]]
            kinds[front - between :] = [-1] * between
            made.append((list(ids), kinds + [1] * (len(ids) - front)))
        return made

    return rows


def drawn_in_turn(classes: Any, rows: int, seed: int) -> list[int]:
    """Numbers of so many different rows, one class after the other for as long as each has any."""
    rng = random.Random(seed)
    left: dict[int, list[int]] = {}
    for i in rng.sample(range(len(classes)), len(classes)):
        left.setdefault(int(classes[i]), []).append(i)
    found: list[int] = []
    while len(found) < rows:
        for label in rng.sample(sorted(left), len(left)):
            found += [left[label].pop()] if left[label] else []
    return found[:rows]


def class_norms_of(model: Any, data: Any) -> Callable[[Any, bool, int], torch.Tensor]:
    """(site, stream, rows) -> (width,): how large each channel is there on training rows, a mean over classes.

    So many rows, classes in turn, are run through the base once for all sites of the same role (`luthier.host.channels`).
    """
    from luthier.host import Adapted
    from luthier.host.channels import class_norms

    adapted, train = Adapted(model.base), data.train
    found: dict[tuple[str, bool, int], dict[str, torch.Tensor]] = {}

    def norms(site: Any, stream: bool, rows: int) -> torch.Tensor:
        key = (site.role, stream, rows)
        if key not in found:
            classed = data.task.kind == "classification"
            drawn = drawn_in_turn(train.targets if classed else [0] * len(train), min(rows, len(train)), 0)
            encoded = encode(model.preprocess, train.select(drawn), data.task, targets=False)
            classes = torch.tensor([int(train.targets[i]) if classed else 0 for i in drawn])
            batches = ((classes[at.tolist()], batch) for at, batch in in_order(encoded, 32, model.device))
            sites = [s for s in adapted.structure.sites if s.role == site.role]
            found[key] = class_norms(adapted, sites, batches, stream=stream)
        return found[key][site.name]

    return norms


FROM_TASK: dict[str, Callable[[Any, Any], Any]] = {
    "class_norms": class_norms_of,
    "demonstrations": demonstrations_of,
    "label_ids": label_ids,
    "tokenize": tokenizer_of,
    "vocabulary": vocabulary_of,
}
"""What starts may need of the task, the model run over it only if they call what they get: name -> function of the model and the data."""
