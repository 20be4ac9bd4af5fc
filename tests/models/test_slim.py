"""Slim models (PELA, S213): their numbers, the perturbation term, the stage, and that they load and are tuned as any model."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import luthier as lt
from luthier.cli.main import main
from luthier.errors import ModelError, OptionError
from luthier.host import Adaptation, Adapted
from luthier.host.slim import Slim, truncated
from luthier.host.structure import structure_of
from luthier.models.model import Model
from luthier.models.slim import rank_of, svd_slim
from luthier.models.write import write_model
from luthier.train.distil import batches, distil, perturbation
from tests.host import bed

NAMES = ("bert", "llama", "gpt2", "t5", "vit", "mamba")


def model(name: str) -> Model:
    return Model(bed.base(name), name, kind="decoder" if name in ("llama", "gpt2", "mamba") else "encoder")


def output(base: torch.nn.Module, name: str) -> torch.Tensor:
    with torch.no_grad():
        return bed.result(Adapted(base), bed.batch(name))


@pytest.mark.parametrize("name", NAMES)
def test_full_rank_computes_as_the_model_and_half_the_numbers_do_not(name: str) -> None:
    dense = model(name)
    want = output(dense.base, name)
    whole = svd_slim(dense, rank=10_000)
    assert all(each.rank == min(each.outputs, each.inputs) for each in whole.layers)
    bed.close(output(whole.model.base, name), want, 1e-4)
    half = svd_slim(dense, 2.0)
    assert not torch.allclose(output(half.model.base, name), want, atol=1e-2)
    counts = {
        m: sum(p.numel() for p in b.parameters())
        for m, b in (("dense", dense.base), ("slim", half.model.base))
    }
    for each in half.layers:
        m, n = each.outputs, each.inputs
        assert each.rank == rank_of(m, n, 2.0) == m * n // (2 * (m + n))
        assert each.slim == each.rank * (m + n) <= each.dense / 2
    saved = sum(each.dense - each.slim for each in half.layers)
    assert counts["dense"] - counts["slim"] == saved
    assert half.ratio == pytest.approx(1 - saved / sum(each.dense for each in half.layers))
    assert torch.equal(output(dense.base, name), want)


@pytest.mark.parametrize("name", NAMES)
def test_a_slim_model_has_the_roles_of_the_dense_one(name: str) -> None:
    dense, slim = model(name), svd_slim(model(name))
    paths = {each.path for each in slim.layers}
    assert not [p for p in paths if p.endswith(("lm_head", "pooler.dense", "dt_proj"))]
    own = {s.name: (s.role, s.layer, s.heads, s.head_dim) for s in structure_of(dense.base).sites}
    now = {s.name: (s.role, s.layer, s.heads, s.head_dim) for s in structure_of(slim.model.base).sites}
    assert {n: now.get(n) for n in own} == own
    inner = {n for p in paths for n in (f"{p}.down", f"{p}.up")}
    assert set(now) - set(own) == inner and {now[n][0] for n in inner} == {"linear"}


def test_the_truncation_is_the_best_of_its_rank_and_takes_its_root() -> None:
    weight = torch.randn(12, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = truncated(weight, torch.zeros(12, dtype=torch.float64), 4)
    sigma = torch.linalg.svdvals(weight)
    assert torch.allclose((made.product - weight).square().sum(), sigma[4:].square().sum())
    for factor in (made.up.weight.norm(dim=0), made.down.weight.norm(dim=1)):
        assert torch.allclose(factor, sigma[:4].sqrt())


def test_the_perturbation_term_is_zero_exactly_at_eps() -> None:
    dense = model("bert")
    slim = svd_slim(dense, 2.0, targets="attention.query | mlp.down")
    changes = []
    for each in slim.layers:
        module: Slim = slim.model.base.get_submodule(each.path)  # type: ignore[assignment]
        changes.append(float((module.product - dense.base.get_submodule(each.path).weight).abs().max()))
    want = sum((c - 1e-3) ** 2 for c in changes) / len(changes)
    assert float(perturbation(slim, dense.base)) == pytest.approx(want)
    # the dense weight moved away from the slim product by eps at one entry: the term is zero, and not before
    near = copy.deepcopy(dense.base)
    for each in slim.layers:
        weight = near.get_submodule(each.path).weight.data
        weight.copy_(slim.model.base.get_submodule(each.path).product)
    assert float(perturbation(slim, near, 0.5)) == pytest.approx(0.25)
    for each in slim.layers:
        near.get_submodule(each.path).weight.data[0, 0] += 0.5
    assert float(perturbation(slim, near, 0.5)) < 1e-12
    near.get_submodule(slim.layers[0].path).weight.data[1, 1] -= 0.75
    assert float(perturbation(slim, near, 0.5)) == pytest.approx(0.0625 / len(slim.layers), rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "bert", "vit"])
def test_the_stage_brings_the_slim_model_nearer_and_leaves_the_teacher(name: str) -> None:
    teacher = model(name)
    slim = svd_slim(teacher, 2.0)
    before = {n: t.clone() for n, t in teacher.base.state_dict().items()}
    x = bed.batch(name, rows=8)
    want, began = output(teacher.base, name), output(slim.model.base, name)
    told = distil(slim, teacher, [x] * 60, steps=60, rate=3e-3)
    assert all(torch.equal(t, before[n]) for n, t in teacher.base.state_dict().items())
    assert told["hidden"][-1] < 0.5 * told["hidden"][0]
    assert bool(told["own"]) == (name == "llama") and not told["logits"]
    ended = output(slim.model.base, name)
    assert (ended - want).norm() < (began - want).norm()
    assert not any(p.requires_grad for p in slim.model.base.parameters())
    assert not any(m._forward_hooks for b in (slim.model.base, teacher.base) for m in b.modules())


def test_a_slim_model_is_written_loaded_and_tuned(tmp_path, capsys) -> None:
    slim = svd_slim(lt.load("builtin:vit", device="cpu"), 2.0)
    again = write_model(slim.model, tmp_path / "slim")
    assert again.fingerprint == slim.model.fingerprint
    assert sum(isinstance(m, Slim) for m in again.base.modules()) == len(slim.layers)
    data = lt.data("builtin:digits").limit(train=16, validation=8, test=8)
    for method in ("full", "bitfit"):
        fitted = lt.fit(again, data, method=method, steps=2, batch_size=8, progress=False)
        assert 0 <= fitted.score(data.test)["accuracy"] <= 1
    with pytest.raises(ModelError, match="edits linear weights"):
        Adapted(again.base).attach("a", Adaptation.new(lt.methods.LoRA(rank=2), again.base))
    thin = Adaptation.new(lt.methods.LoRA(rank=2, targets="linear"), again.base)
    assert {at.site.path.rpartition(".")[0] for at in thin.at()} == {each.path for each in slim.layers}
    config = json.loads((tmp_path / "slim" / "config.json").read_text())
    path = next(iter(config["luthier_slim"]))
    for wrong in ({path: 0}, {path: 10**6}, {"nowhere": 2}, {path: "2"}, [path]):
        (tmp_path / "slim" / "config.json").write_text(json.dumps({**config, "luthier_slim": wrong}))
        with pytest.raises(ModelError, match="slim layers that it cannot have"):
            lt.load(tmp_path / "slim", device="cpu")


def test_the_command_compresses_distils_and_writes(tmp_path, capsys) -> None:
    table = tmp_path / "rows.csv"
    rows = [f"the {w} was late on day {i},{w}" for i in range(20) for w in ("train", "post")]
    table.write_text("\n".join(["text,label", *rows]) + "\n")
    out = tmp_path / "slim"
    command = ["slim", "--model", "builtin:llama", "--data", str(table), "--out", str(out), "--steps", "2"]
    assert main([*command, "--batch-size", "4", "--ratio", "3", "--quiet", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert 0.2 < said["linear"]["parameters"] == said["linear"]["flops"] <= 1 / 3
    assert said["left"] < said["parameters"] and len(said["losses"]["own"]) == 2
    assert lt.load(out, device="cpu").generates
    assert main(command) == 2 and "exists" in capsys.readouterr().err


def test_what_cannot_be_made_smaller_is_refused() -> None:
    with pytest.raises(OptionError, match="makes nothing smaller"):
        svd_slim(model("bert"), 1.0)
    with pytest.raises(ModelError, match="no linear layers in blocks"):
        svd_slim(model("bert"), targets="norm")
    with pytest.raises(ModelError, match="no preprocessing"):
        next(iter(batches(model("bert"), ["a"], 1, 0)))
