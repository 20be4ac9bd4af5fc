"""DoRA, VeRA, LoHa, LoKr, OFT, FourierFT and RandLoRA to the real peft and from it: outputs equal to 1e-5, or a refusal with the reason."""

import copy
import warnings

import peft
import pytest
import torch
from peft.tuners.lokr.layer import factorization
from peft_bed import base, edited, fresh, opened, ours, same, theirs, wrapped

from luthier.convert import from_peft, to_peft
from luthier.convert.lokr import theirs as peft_factor
from luthier.errors import FileFormatError, ModelError
from luthier.host import files
from luthier.methods.kronecker.lokr import LoKr
from luthier.methods.low_rank.dora import DoRA
from luthier.methods.low_rank.loha import LoHa
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.low_rank.randlora import RandLoRA
from luthier.methods.low_rank.vera import VeRA
from luthier.methods.orthogonal.boft import BOFT
from luthier.methods.orthogonal.oft import OFT
from luthier.methods.spectral.fourierft import FourierFT
from luthier.starts.normal import Normal
from luthier.starts.singular import PiSSAStart
from tests.host import bed

EVERY = ("bert", "llama", "t5")
FEED = "mlp.up | mlp.down"
KEYS = {
    "bert": ["query", "value", "intermediate.dense"],
    "llama": ["q_proj", "v_proj", "up_proj"],
    "t5": ["q", "v", "wi", "wo"],
    "gpt2": ["c_fc"],
}


def methods():
    return {
        "dora": DoRA(rank=4, alpha=6),
        "dora-anchored": DoRA(rank=2, start=PiSSAStart()),
        "vera": VeRA(rank=8),
        "vera-feed": VeRA(rank=5, seed=3, targets=FEED),
        "vera-peft": VeRA(rank=8, seed=7, basis="peft"),
        "loha": LoHa(rank=3, alpha=2),
        "lokr": LoKr(rank=2, factor=4),
        "lokr-square": LoKr(rank=1, factor=0, alpha=3),
        "oft": OFT(block=4),
        "fourierft": FourierFT(count=40, alpha=100, positions="peft", seed=5),
        "randlora": RandLoRA(rank=4, scale=0.5),
        "randlora-ternary": RandLoRA(rank=6, scale=0.5, basis="ternary", seed=2),
    }


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("key", methods())
def test_peft_computes_what_luthier_does_and_the_way_back_too(name, key, tmp_path):
    made = fresh(name, methods()[key])
    if key.startswith("randlora") and name == "llama":  # its values are narrower than its queries
        with pytest.raises(ModelError, match="smaller sides of these modules differ"):
            to_peft(made, bed.base(name), tmp_path / "a")
        return
    assert to_peft(made, bed.base(name), tmp_path / "a") == []
    z = theirs((unwarned if "randlora" in key else opened)(name, tmp_path / "a").double(), name)
    same(name, ours(made, name, dtype=torch.float64), z, moved=1e-3)
    back = from_peft(tmp_path / "a", bed.base(name))
    same(name, ours(back, name, dtype=torch.float64), z, moved=1e-3)
    assert back.method.name == made.method.name


def unwarned(name, folder):
    """Opened, where peft misses the copies of RandLoRA's bases that it writes at every module, and reads those that all share."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(base(name), str(folder)).eval()


def configs(name):
    at = {"target_modules": KEYS[name]}
    made = {
        "dora": peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, lora_dropout=0.1, **at),
        "dora-ranks": peft.LoraConfig(r=4, use_dora=True, rank_pattern={KEYS[name][0]: 2}, **at),
        "vera": peft.VeraConfig(r=8, projection_prng_key=11, **at),
        "vera-unsaved": peft.VeraConfig(r=8, save_projection=False, **at),
        "loha": peft.LoHaConfig(r=3, alpha=2, **at),
        "lokr": peft.LoKrConfig(r=2, decompose_factor=2, **at),
        "lokr-whole": peft.LoKrConfig(r=8, decompose_factor=2, **at),
        "lokr-both": peft.LoKrConfig(r=1, decompose_both=True, **at),
        "oft": peft.OFTConfig(oft_block_size=4, use_cayley_neumann=False, **at),
        "oft-wide": peft.OFTConfig(r=0, oft_block_size=16, use_cayley_neumann=False, **at),
        "fourierft": peft.FourierFTConfig(n_frequency=40, scaling=50.0, **at),
    }
    if name == "gpt2":  # the others take nn.Linear alone
        made = {k: made[k] for k in ("dora", "vera", "fourierft")}
    if name == "llama":
        del made["lokr-whole"]  # its modules differ in size
    return made


@pytest.mark.parametrize("name,key", [(n, k) for n in KEYS for k in configs(n)])
def test_luthier_computes_what_peft_does_and_the_way_back_too(name, key, tmp_path):
    model = wrapped(name, configs(name)[key])
    model.save_pretrained(str(tmp_path / "a"))
    made = from_peft(tmp_path / "a", bed.base(name))
    same(name, ours(made, name, dtype=torch.float64), theirs(copy.deepcopy(model).double(), name), moved=1e-3)
    to_peft(made, bed.base(name), tmp_path / "b")
    same(name, ours(made, name, dtype=torch.float64), theirs(opened(name, tmp_path / "b").double(), name), moved=1e-3)  # fmt: skip
    files.save(made, tmp_path / "c", "f")
    again = files.load(tmp_path / "c", bed.base(name), "f")
    assert torch.equal(ours(again, name), ours(made, name))


def test_dora_on_slices_of_a_fused_projection(tmp_path):
    made = fresh("gpt2", DoRA(rank=3))
    assert all(a.site.rows is not None for a in made.at())
    to_peft(made, bed.base("gpt2"), tmp_path / "a")
    same("gpt2", ours(made, "gpt2"), theirs(opened("gpt2", tmp_path / "a"), "gpt2"))
    same("gpt2", ours(from_peft(tmp_path / "a", bed.base("gpt2")), "gpt2"), ours(made, "gpt2"))


def test_what_both_make_of_a_seed_is_the_same(tmp_path):
    """The positions and bases themselves, not only their effect."""
    model = wrapped("bert", peft.VeraConfig(r=8, projection_prng_key=11, target_modules=KEYS["bert"]))
    model.save_pretrained(str(tmp_path / "a"))
    made = from_peft(tmp_path / "a", bed.base("bert"))
    assert made.method.basis == "peft" and made.method.seed == 11
    common = made.placed()[0].common
    assert torch.equal(common["A"], model.base_model.vera_A["default"])
    assert torch.equal(common["B"], model.base_model.vera_B["default"])
    model = wrapped("bert", peft.FourierFTConfig(n_frequency=40, target_modules=KEYS["bert"]))
    model.save_pretrained(str(tmp_path / "b"))
    made = from_peft(tmp_path / "b", bed.base("bert"))
    for at in made.at():
        rows, columns = model.get_submodule(f"base_model.model.{at.site.path}").indices["default"]
        assert torch.equal(at.values["positions"], rows * at.site.in_features + columns)


def test_a_base_of_another_seed_is_refused(tmp_path):
    for n, method in enumerate((VeRA(rank=8), RandLoRA(rank=4))):
        folder = tmp_path / str(n)
        to_peft(fresh("bert", method), bed.base("bert"), folder)
        with edited(folder) as (_, tensors):
            key = next(k for k in tensors if k.endswith("a_A"))
            tensors[key][0, 0] += 0.01
        with pytest.raises(FileFormatError, match="projection_prng_key=0"):
            from_peft(folder, bed.base("bert"))
    model = wrapped("bert", peft.RandLoraConfig(r=8, target_modules=["query"]))
    model.save_pretrained(str(tmp_path / "peft"))
    with pytest.raises(FileFormatError, match="half precision"):
        from_peft(tmp_path / "peft", bed.base("bert"))


def test_kronecker_sizes_are_those_that_peft_chooses():
    for side in range(1, 200):
        for factor in (0, *range(1, 40)):
            assert peft_factor(side, factor) == factorization(side, factor or -1)[0], (side, factor)


@pytest.mark.parametrize(
    "name,method,words",
    [
        ("bert", BOFT(block=4), "boft can't be converted.*third factor"),
        ("bert", FourierFT(count=40), "positions=peft"),
        ("bert", LoKr(rank=1, factor=24), "lokr: factor=24 divides"),
        ("llama", RandLoRA(rank=4), "smaller sides"),
        ("gpt2", VeRA(rank=4), "slice of a fused projection.*VERA"),
        ("gpt2", OFT(block=4, targets="mlp.up"), "OFT takes nn.Linear only"),
        ("gpt2", LoHa(rank=2, targets="mlp.up"), "LOHA takes nn.Linear only"),
    ],
)
def test_what_peft_cannot_hold_is_refused(name, method, words, tmp_path):
    with pytest.raises(ModelError, match=words):
        to_peft(fresh(name, method), bed.base(name), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_start_whose_effect_is_taken_off_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Normal, "anchored", True)
    with pytest.raises(ModelError, match="the effect of its start is taken off"):
        to_peft(fresh("bert", LoKr(rank=2, start=Normal())), bed.base("bert"), tmp_path / "a")


def test_sums_of_effects_that_do_not_add_are_refused(tmp_path):
    a, b = fresh("bert", DoRA(rank=2)), fresh("bert", LoRA(rank=2))
    for mixed in (0.5 * a, a + b, a + fresh("bert", DoRA(rank=2))):
        with pytest.raises(ModelError, match="can't be exported"):
            to_peft(mixed, bed.base("bert"), tmp_path / "a")


@pytest.mark.parametrize(
    "config,change,words",
    [
        (peft.OFTConfig(oft_block_size=4), {}, "use_cayley_neumann=true.*truncated series"),
        (peft.OFTConfig(oft_block_size=4, use_cayley_neumann=False, coft=True), {}, "coft=true"),
        (
            peft.OFTConfig(oft_block_size=4, use_cayley_neumann=False, block_share=True),
            {},
            "block_share=true",
        ),
        (peft.LoHaConfig(r=2, rank_pattern={"query": 1}), {}, "rank_pattern=.*LORA only"),
        (peft.FourierFTConfig(n_frequency=9, n_frequency_pattern={"query": 4}), {}, "n_frequency_pattern"),
        (peft.BOFTConfig(boft_block_size=4), {}, "'BOFT' can't be converted.*scale of each output"),
        (peft.LoHaConfig(r=2), {"r": 3}, "needs .*another base"),
        (peft.LoKrConfig(r=2, decompose_factor=2), {"r": 3}, "another base"),
        (peft.VeraConfig(r=4), {"r": 5}, "another base"),
        (peft.VeraConfig(r=4), {"projection_prng_key": -1}, "is no seed"),
        (peft.FourierFTConfig(n_frequency=9), {"n_frequency": 8}, "another base"),
        (peft.FourierFTConfig(n_frequency=9), {"random_loc_seed": "x"}, "is no seed"),
    ],
)
def test_what_luthier_cannot_read_is_refused(config, change, words, tmp_path):
    config.target_modules = {"query", "value"}
    wrapped("bert", config).save_pretrained(str(tmp_path / "a"))
    with edited(tmp_path / "a") as (written, _):
        written.update(change)
    with pytest.raises(FileFormatError, match=words):
        from_peft(tmp_path / "a", bed.base("bert"))


def test_a_missing_magnitude_is_noticed(tmp_path):
    to_peft(fresh("bert", DoRA(rank=2)), bed.base("bert"), tmp_path / "a")
    with edited(tmp_path / "a") as (_, tensors):
        del tensors[next(k for k in tensors if k.endswith("magnitude_vector"))]
    with pytest.raises(FileFormatError, match="magnitude_vector is missing"):
        from_peft(tmp_path / "a", bed.base("bert"))
