"""Intruder dimensions (S122): counted where they were put, removed by the repair, and written as a model that loads."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import luthier as lt
from luthier.cli.main import main
from luthier.errors import ModelError, OptionError, RunError
from luthier.host import Adaptation
from luthier.host.merge import merged_copy
from luthier.instruments.intruders import as_many_at_random, intruders, repaired, resemblance, scaled
from luthier.methods.heads import LinearHead
from luthier.methods.low_rank.lora import LoRA
from luthier.models.write import write_model
from tests.host import bed


def planted(weight: torch.Tensor, times: float, seed: int) -> torch.Tensor:
    """A random term of rank one, `times` as large as the largest singular value, added to a weight."""
    rng = torch.Generator().manual_seed(seed)
    u, v = (torch.randn(n, generator=rng, dtype=weight.dtype) for n in weight.shape)
    return weight + times * torch.linalg.matrix_norm(weight, 2) * torch.outer(u / u.norm(), v / v.norm())


def steep(out: int, inputs: int, seed: int) -> torch.Tensor:
    """A matrix whose singular values fall as those of trained weights do."""
    rng = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(
        torch.randn(out, inputs, generator=rng, dtype=torch.float64), full_matrices=False
    )
    return (u * torch.arange(1, len(v) + 1, dtype=torch.float64) ** -0.7) @ v


@pytest.mark.parametrize("shape", [(128, 128), (192, 128), (128, 320)])
@pytest.mark.parametrize("times", [2.0, 3.0, 5.0])
def test_a_large_random_term_is_one_intruder_and_its_repair_removes_it(shape, times) -> None:
    for seed in range(3):
        weight = steep(*shape, seed)
        assert int((resemblance(weight, weight) < 0.5).sum()) == 0
        tuned = planted(weight, times, seed + 10)
        similar = resemblance(weight, tuned)
        assert (similar < 0.5).tolist() == [True, *[False] * 9]
        without = scaled(tuned, [0], 0.0)
        assert int((resemblance(weight, without) < 0.5).sum()) == 0
        assert torch.linalg.matrix_norm(without, 2) < 1.2 * torch.linalg.matrix_norm(weight, 2)


def test_the_repair_scales_the_tuned_weight_and_not_the_update() -> None:
    weight = planted(steep(128, 128, 0), 3.0, 1)
    u, sigma, v = torch.linalg.svd(weight)
    want = weight - 0.25 * sigma[0] * torch.outer(u[:, 0], v[0])
    assert torch.allclose(scaled(weight, [0], 0.75), want)
    assert torch.allclose(torch.linalg.svdvals(scaled(weight, [0], 0.75))[0], 0.75 * sigma[0])


def test_resemblance_looks_at_all_pretrained_vectors_and_not_at_the_top_ones() -> None:
    q = torch.linalg.qr(
        torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ).Q
    weight = q * torch.arange(64, 0, -1, dtype=torch.float64)
    tuned = weight + 100 * torch.outer(q[:, 63], torch.eye(64, dtype=torch.float64)[63])
    assert resemblance(weight, tuned, 3).min() > 0.99  # the last vector has become the first


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_every_matrix_of_both_models_is_looked_at(name) -> None:
    base = bed.base(name)
    same = intruders(base, bed.base(name))
    assert same.total == 0 and not same.left_out
    paths = {m.path for m in same.matrices}
    heads = {n for n, m in base.named_modules() if n.endswith("lm_head")}
    assert paths and not (paths & heads if name == "gpt2" else set())  # tied to the embedding
    tuned = bed.base(name)
    path = same.matrices[-2].path
    module = tuned.get_submodule(path)
    turned = name == "gpt2"
    weight = module.weight.data.T if turned else module.weight.data
    new = planted(weight, 4.0, 3)
    module.weight.data = (new.T if turned else new).contiguous()
    found = intruders(base, tuned, eps=0.7)  # at width 32 random directions resemble each other more
    assert 0 in found.where[path] and set(found.where) == {path}
    assert sum(sum(row.values()) for row in found.counts().values()) == found.total
    again = intruders(base, repaired(tuned, {path: [0]}, 0.0), eps=0.7)
    assert 0 not in again.where.get(path, ())
    assert torch.equal(module.weight.data.T if turned else module.weight.data, new)  # a copy was repaired


def test_the_control_draws_as_many_of_the_top_components() -> None:
    base, tuned = bed.base("llama"), bed.base("llama")
    for m in tuned.modules():
        if isinstance(m, nn.Linear):
            m.weight.data = torch.randn(m.weight.shape, generator=torch.Generator().manual_seed(0))
    found = intruders(base, tuned, k=6, eps=0.6)
    drawn = as_many_at_random(found, torch.Generator().manual_seed(0))
    assert found.total > 0 and {p: len(c) for p, c in drawn.items()} == {
        p: len(c) for p, c in found.where.items()
    }
    assert all(len(set(c)) == len(c) and max(c) < 6 for c in drawn.values())


def test_models_that_are_not_one_tuned_from_the_other_are_refused() -> None:
    with pytest.raises(ModelError, match="no linear layer in common"):
        intruders(bed.base("llama"), bed.base("bert"))
    with pytest.raises(ModelError, match="tuned from another one"):
        intruders(nn.Sequential(nn.Linear(4, 6)), nn.Sequential(nn.Linear(4, 8)))
    with pytest.raises(OptionError, match="eps"):
        intruders(bed.base("llama"), bed.base("llama"), eps=0.0)
    with pytest.raises(OptionError, match="below 1"):
        repaired(bed.base("llama"), {}, 1.0)


@pytest.fixture(scope="module")
def adaptation(tmp_path_factory) -> str:
    """An adaptation of the embedded Llama, in its own folder, with one large random term at every query."""
    from luthier.host.files import save

    model = lt.load("builtin:llama", device="cpu")
    made = Adaptation.new(LoRA(rank=1, alpha=1.0, targets="attention.query"), model.base)
    rng = torch.Generator().manual_seed(0)
    for at in made.at():
        top = torch.linalg.matrix_norm(model.base.get_submodule(at.site.path).weight, 2)
        for p in at.values.values():
            value = torch.randn(p.shape, generator=rng)
            p.data = value / value.norm() * (3 * top).sqrt()
    made.about = {"base": "builtin:llama"}
    folder = tmp_path_factory.mktemp("intruders") / "a"
    save(made, folder, model.fingerprint)
    return str(folder)


def test_the_command_counts_by_layer_and_writes_a_repaired_model(adaptation, tmp_path, capsys) -> None:
    command = ["instruments", "intruders", "builtin:llama", adaptation, "--targets", "attention.*"]
    out = tmp_path / "repaired"
    assert main([*command, "--repair", "0", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    blocks = len({m["layer"] for m in found["matrices"]})
    assert found["intruders"] == blocks  # one at every query, none elsewhere
    assert all(row["attention.query"] == 1 and row["attention.key"] == 0 for row in found["layers"].values())
    assert main([*command[:3], str(out), *command[4:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["intruders"] == 0
    assert main([*command, "--repair", "0", "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(command) == 0
    assert "attention.query" in capsys.readouterr().out
    for wrong in (
        ["--repair", "0.5"],
        ["--out", str(tmp_path / "b")],
        ["--repair", "1", "--out", str(tmp_path / "b")],
    ):
        assert main([*command, *wrong]) == 2
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_a_model_that_is_written_loads_as_itself(name, tmp_path) -> None:
    model = lt.load(f"builtin:{name}", device="cpu")
    again = write_model(model, tmp_path / "m")
    assert again.fingerprint == model.fingerprint
    assert again.preprocess.settings == model.preprocess.settings
    with pytest.raises(RunError, match="exists"):
        write_model(model, tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_an_adaptation_merges_without_its_head_when_asked() -> None:
    base = bed.base("bert")
    made = bed.shaken(Adaptation.new(LoRA(rank=2), base, head=LinearHead(classes=3)))
    plain = merged_copy(base, made, head=False)
    assert type(plain) is type(base) and "forward" not in plain.__dict__
