"""Testbeds: their weights are what their cards say, their texts stay apart, and their recipes run."""

import hashlib
import json
import platform
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import luthier as lt
from luthier.errors import DataError, ModelError
from luthier.models.testbeds import card, corpus, encoder_decoder, masked, ngram, skills, tasks, texts, tokens
from luthier.models.testbeds.build import build, measured
from luthier.models.testbeds.pretrain import share
from luthier.models.testbeds.recipe import MODULES, digest, recipe

INSTALLED = sorted(card.installed())
TEXT = sorted(name for name in ("llama", "gpt2", "t5", "bert") if name in INSTALLED)


def of_the_card(name):
    """Skips where the card's corpus is the documentation of another Python."""
    made = card.read(card.FOLDER / name)
    if (there := made.versions["python"]) != platform.python_version():
        pytest.skip(f"the card's corpus is the documentation of Python {there}")
    return made


def test_the_text_testbeds_are_installed():
    assert TEXT == ["bert", "gpt2", "llama", "t5"]


@pytest.mark.parametrize("name", INSTALLED)
def test_weights_are_what_the_card_says(name):
    made = card.read(card.FOLDER / name)
    weights = (card.FOLDER / name / card.WEIGHTS).read_bytes()
    assert hashlib.sha256(weights).hexdigest() == made.sha256
    assert len(weights) == made.bytes < 7e6
    loaded = lt.load(f"builtin:{name}", device="cpu")
    assert sum(p.numel() for p in loaded.base.parameters()) == made.parameters
    assert 0.5e6 < made.parameters < 4e6


@pytest.mark.parametrize("name", INSTALLED)
def test_the_card_is_of_the_recipe_as_it_stands(name):
    made = card.read(card.FOLDER / name)
    assert digest(recipe(name)) == made.recipe
    assert (recipe(name).total, recipe(name).seed) == (made.steps, made.seed)


def test_a_changed_value_changes_the_digest():
    made = recipe("llama")
    assert digest(replace(made, rate=1.0)) != digest(made)


@pytest.mark.parametrize("name", INSTALLED)
def test_a_damaged_testbed_is_refused(name, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(card.FOLDER / name, tmp_path / name)
    monkeypatch.setattr(card, "FOLDER", tmp_path)
    path = tmp_path / name / card.WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError):
        lt.load(f"builtin:{name}", device="cpu")
    settings = tmp_path / name / "config.json"
    settings.write_text(settings.read_text() + " ")
    with pytest.raises(ModelError, match="another than its card says"):
        lt.load(f"builtin:{name}", device="cpu")


def test_an_unknown_testbed_lists_what_there_is():
    with pytest.raises(ModelError, match="llama"):
        lt.load("builtin:lama")


@pytest.mark.parametrize("name", [n for n in ("llama", "gpt2") if n in INSTALLED])
def test_a_decoder_reads_documentation_better_than_a_trigram(name):
    of_the_card(name)
    loaded = lt.load(f"builtin:{name}", device="cpu")
    from luthier.models.testbeds import measures

    found = measures.language_model(loaded, quick=True)
    assert found["bits per byte"] < found["bits per byte, trigram"]


def test_the_llama_writes_two_skills_at_ninety_in_a_hundred():
    from luthier.models.testbeds import measures

    stored = card.read(card.FOLDER / "llama").skills
    best = sorted((s for s in skills.DECODER), key=lambda s: -stored[s])[:2]
    assert min(stored[s] for s in best) >= 0.9
    loaded = lt.load("builtin:llama", device="cpu")
    for skill in best:
        asked = skills.held_out_instances(skill, 30, seed=1)
        said = measures.write(loaded, [i.prompt for i in asked])
        assert sum(a == i.answer for a, i in zip(said, asked)) >= 0.8 * len(asked)
        assert stored[f"{skill}, nearest"] < 0.5


@pytest.mark.parametrize("name", [n for n in ("bert", "t5") if n in INSTALLED])
def test_held_out_figures_beat_their_baselines(name):
    of_the_card(name)
    found = measured(card.FOLDER / name, recipe(name), quick=True).held_out
    if name == "bert":
        assert found["masked tokens right"] > found["masked tokens right, bigram"]
        assert found["masked tokens right, bigram"] > found["masked tokens right, most frequent"]
        assert found["topics right, linear probe"] > found["topics right, most frequent"]
    else:
        for language in ("English", "cipher"):
            bits = found[f"bits per missing token, {language}"]
            assert bits < found[f"bits per missing token, {language}, by frequency"]


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bert"])
def test_a_build_of_three_steps_writes_a_folder_that_loads(name, tmp_path, monkeypatch):
    from luthier.models.testbeds import measures

    monkeypatch.setattr(measures, "QUICK", 2)
    monkeypatch.setattr(measures, "TEXTS_QUICK", 4)
    losses = []
    made = build(
        name, tmp_path / name, steps=3, seed=5, quick=True, told=lambda step, steps, loss: losses.append(loss)
    )
    assert len(losses) == 3 and all(loss == loss for loss in losses)
    assert (made.steps, made.seed) == (3, 5)
    assert card.read(tmp_path / name) == made
    assert lt.load(tmp_path / name, device="cpu").preprocess is not None
    assert json.loads((tmp_path / name / "config.json").read_text())["architectures"]
    (tmp_path / name / "mine.txt").write_text("keep")
    with pytest.raises(ModelError, match="holds other files"):
        build(name, tmp_path / name, steps=1)


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_batches_are_a_function_of_the_seed(name):
    made = recipe(name)

    def first(seed):
        return next(made.module.batches(replace(made, seed=seed)))[0]["input_ids"]

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1)[:, :20], first(2)[:, :20])


def test_the_corpus_is_read_the_same_each_time_and_keeps_what_is_tested_on_out():
    path = Path(json.__file__)
    assert list(corpus._of_file(path)) == list(corpus._of_file(path)) != []
    assert len(corpus.paragraphs()) > 5000
    trained = "\n".join(corpus.training())
    assert not set(corpus.held_out_texts()) & set(corpus.training())
    rows = lt.data("builtin:pydocs")
    assert not [text for text in rows.test.inputs if text in trained]


def test_the_stored_held_out_texts_are_held_out_by_their_hash():
    stored = corpus.held_out_texts()
    assert len(stored) > 500
    assert all(corpus.held_out(text) for text in stored)


@given(st.text())
def test_the_cipher_is_undone(text):
    assert corpus.decipher(corpus.cipher(text)) == text
    assert corpus.cipher(corpus.decipher(text)) == text


def test_the_cipher_moves_words_and_letters_inside_a_sentence():
    said = "Return the list, sorted by key. Or not?"
    assert corpus.cipher(said) == "axi wi eydoxt, uneo obx Dxofdc. cyo Yd?".replace(
        "axi wi eydoxt", corpus.cipher("sorted by key")
    )
    assert sorted(corpus.PERMUTED) == sorted("abcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize("skill", list(skills.SKILLS))
def test_training_and_held_out_instances_of_a_skill_are_apart(skill):
    rng = random.Random(3)
    trained = {skills.instance(skill, rng, wordings=9) for _ in range(300)}
    kept = set(skills.held_out_instances(skill, 60, wordings=9))
    assert not {i.prompt for i in trained} & {i.prompt for i in kept}
    assert all(i.answer for i in trained | kept)


@pytest.mark.parametrize(
    ("skill", "prompt", "answer"),
    [
        ("reverse", "reverse: a b c", "c b a"),
        ("sort", "sort: 7 2 5", "2 5 7"),
        ("last", "last: a b c", "c"),
    ],
)
def test_answers_are_right(skill, prompt, answer):
    for made in skills.held_out_instances(skill, 50):
        words = made.prompt.split(": ")[1].split()
        right = {"reverse": words[::-1], "sort": sorted(words), "last": words[-1:]}[skill]
        assert made.answer.split() == right
    assert prompt.split(":")[0] == skill and answer


def test_sums_are_right():
    for made in skills.held_out_instances("add", 50):
        a, b = made.prompt.removeprefix("add: ").split(" + ")
        assert int(made.answer) == int(a) + int(b)


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=60))
def test_the_tokenizer_loses_nothing(text):
    if any(special in text for special in tokens.SPECIAL):
        return
    assert texts.encoder().decode(texts.ids(text)) == text


def test_digits_are_tokens_of_their_own():
    made = texts.encoder().encode("add: 341").tokens
    assert made[-3:] == ["3", "4", "1"]


@given(st.integers(2, 60), st.integers(0, 9))
def test_span_corruption_keeps_every_token(length, seed):
    ids = list(range(tokens.FIRST_TEXT, tokens.FIRST_TEXT + length))
    source, target = encoder_decoder.corrupted(ids, random.Random(seed))
    spans, current = {}, None
    for token in target:
        if token < tokens.FIRST_TEXT:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    back = [t for token in source for t in (spans[token] if token < tokens.FIRST_TEXT else [token])]
    assert back == ids


def test_masking_hides_the_share_asked_and_labels_it():
    ids = [tokens.CLS, *range(100, 200), tokens.SEP]
    seen, labels = masked.masked(ids, 0.15, random.Random(0))
    hidden = [i for i, label in enumerate(labels) if label != texts.IGNORED]
    assert len(hidden) == 15
    assert all(labels[i] == ids[i] for i in hidden)
    assert all(seen[i] == ids[i] for i in range(len(ids)) if i not in hidden)


def test_a_bert_starts_with_heads_that_look_at_the_neighbours():
    torch.manual_seed(0)
    model = masked.model(recipe("bert")).eval()
    model.set_attn_implementation("eager")
    ids = torch.randint(tokens.FIRST_TEXT, tokens.VOCABULARY, (4, 60))
    with torch.no_grad():
        seen = model(input_ids=ids, output_attentions=True).attentions[0].mean(0)
    for head, distance in enumerate(masked.LOOKS):
        there = seen[head].diagonal(offset=distance).mean()
        assert there > 0.4 > 5 * seen[head].diagonal(offset=-distance).mean()
    assert seen[-1].max() < 0.4  # the last head is drawn


def test_the_trigram_is_a_distribution_and_prefers_what_it_saw():
    model = ngram.Trigram([[5, 6, 7], [5, 6, 8], [5, 6, 7]], vocabulary=10, begin=0, end=1)
    for before in ((0, 0), (5, 6), (9, 9)):
        assert sum(model.probability(*before, c) for c in range(10)) == pytest.approx(1)
    assert model.probability(5, 6, 7) > model.probability(5, 6, 8) > model.probability(5, 6, 9)
    assert model.likeliest(6) == 7


def test_the_rate_rises_and_falls():
    shares = [share(step, 100, 0.1) for step in range(100)]
    assert shares[9] == 1.0 and shares[0] == 0.1
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[-1] == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("name", list(tasks.TASKS))
def test_a_task_has_parts_without_common_rows_and_is_no_skill(name):
    made = lt.data(f"builtin:{name}")
    assert made.rows == tasks.ROWS
    inputs = [text for part in made.parts.values() for text in part.inputs]
    assert len(set(inputs)) == len(inputs)
    assert made.digest == tasks.data(name).digest
    fronts = {pattern.split("{")[0] for _, patterns in skills.SKILLS.values() for pattern in patterns} - {""}
    assert not [text for text in inputs if text.startswith(tuple(fronts))]
    if made.task.kind == "classification":
        few = made.limit(train=32)
        counts = [list(few.train.targets).count(i) for i in range(len(made.task.labels))]
        assert max(counts) - min(counts) <= 1
        words = tasks.as_text2text(made)
        assert words.train[0] == (made.train.inputs[0], made.task.labels[made.train.targets[0]])


def test_an_unknown_task_is_refused():
    with pytest.raises(DataError, match="order-a"):
        tasks.data("order-z")


def test_every_recipe_names_itself():
    for name in MODULES:
        assert recipe(name).name == name
