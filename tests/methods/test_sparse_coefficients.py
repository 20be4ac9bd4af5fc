"""WaveFT (S321) and FourierFT: exact counts, what a change is made of, and what a file holds."""

from __future__ import annotations

import pytest
import torch

from luthier.errors import OptionError
from luthier.host import Adaptation
from luthier.host.files import load, save
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.spectral.fourierft import FourierFT
from luthier.methods.spectral.waveft import WaveFT
from luthier.sources.transforms import inverse
from tests.host import bed

PARTS = {
    "haar": WaveFT(count=37),
    "db3": WaveFT(count=37, wavelet="db3"),
    "identity": WaveFT(count=37, transform="identity"),
    "fourier": WaveFT(count=37, transform="fourier"),
    "fourierft": FourierFT(count=37),
}


@pytest.mark.parametrize("name", PARTS)
def test_as_many_numbers_train_as_asked_at_places_of_a_seed(name: str, tmp_path) -> None:
    base, part = bed.base("llama"), PARTS[name]
    made = bed.shaken(Adaptation.new(part, base))
    for at in made.at():
        rows, columns = part.size(at.site.out_features, at.site.in_features)
        where = at.values["positions"].tolist()
        assert at.values["c"].shape == (37,) and len(set(where)) == 37 and max(where) < rows * columns
    places = [at.values["positions"].tolist() for at in made.at()]
    assert all(p != places[0] for p in places[1:])
    assert [a.values["positions"].tolist() for a in Adaptation.new(part, base, seed=3).at()] == places
    assert {k.rsplit(".")[-1] for k in made.state()} == {"c"}
    save(made, tmp_path / "a", "base")
    again = load(tmp_path / "a", base, "base")
    assert all(
        torch.equal(v, again.state(everything=True)[k]) for k, v in made.state(everything=True).items()
    )


@pytest.mark.parametrize("name", PARTS)
def test_a_change_is_the_inverse_transform_of_the_map(name: str) -> None:
    part = PARTS[name]
    made = bed.shaken(Adaptation.new(part, bed.base("gpt2").double())).double()
    for at in made.at():
        s, t = at.site, at.t(None)
        rows, columns = part.size(s.out_features, s.in_features)
        c = torch.zeros(rows, columns, dtype=torch.float64)
        for place, value in zip(t.positions.tolist(), t.c.tolist()):
            c[place // columns, place % columns] = value
        want = part.alpha * inverse(c, s.out_features, s.in_features, part.transform, part.wavelet)
        weight = torch.zeros(s.out_features, s.in_features, dtype=torch.float64)
        assert torch.allclose(part.delta(weight, t), want)
        x = torch.randn(2, 3, s.in_features, dtype=torch.float64)
        y = torch.zeros(2, 3, s.out_features, dtype=torch.float64)
        assert torch.allclose(part.shortcut(x, y, t), x @ want.T)
        assert name == "fourierft" or part.alpha == 25.0


def test_few_coefficients_have_a_higher_rank_than_lora_of_as_many() -> None:
    base = bed.base("gpt2")
    lora = Adaptation.new(LoRA(rank=1, targets="mlp.up"), base).counts()["method"] // 3
    at = bed.shaken(Adaptation.new(WaveFT(count=lora, targets="mlp.up"), base)).at()[0]
    weight = torch.zeros(at.site.out_features, at.site.in_features)
    assert at.values["c"].numel() == lora
    assert torch.linalg.matrix_rank(WaveFT().delta(weight, at.t(None)).detach()) > 10


def test_more_coefficients_than_there_are_is_refused() -> None:
    with pytest.raises(OptionError, match="count=5000 is above 1024"):
        Adaptation.new(WaveFT(count=5000), bed.base("bert"))
