"""The vision testbed: its images are generated and labelled, and its frozen features say more than pixels."""

import ast
import inspect

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import luthier as lt
from luthier.models.testbeds import card, images, probes, vit
from luthier.models.testbeds.build import build
from luthier.models.testbeds.recipe import recipe


@pytest.fixture(scope="module")
def loaded():
    if "vit" not in card.installed():
        pytest.skip("no weights are stored for builtin:vit yet: luthier testbed build vit")
    return lt.load("builtin:vit", device="cpu")


def drawn(n=240, seed=0, **options):
    return images.batch(np.random.default_rng(seed), n, **options)


def test_images_are_a_function_of_the_generator():
    (one, labels), (two, same), (other, _) = drawn(), drawn(), drawn(seed=1)
    assert np.array_equal(one, two) and np.array_equal(labels, same)
    assert one.shape == (240, 32, 32, 3) and one.dtype == np.uint8
    assert not np.array_equal(one, other)
    assert len({image.tobytes() for image in one}) == 240


def test_labels_are_the_values_of_their_factors():
    _, labels = drawn(2000)
    glyph = labels[:, 0] != images.IGNORED
    assert glyph.mean() == 0.5
    names = list(images.FACTORS)
    for i, (name, size) in enumerate(images.FACTORS.items()):
        there = labels[:, i][labels[:, i] != images.IGNORED]
        assert set(there) == set(range(size)), name
    only_figures = [names.index(n) for n in ("shape", "texture", "size", "place")]
    assert (labels[glyph][:, only_figures] == images.IGNORED).all()
    assert (labels[~glyph][:, 1:] != images.IGNORED).all()
    figures = labels[~glyph]
    assert (figures[:, names.index("hue")] != figures[:, names.index("ground_hue")]).all()


def test_a_place_is_where_the_figure_is():
    rng = np.random.default_rng(0)
    x, y = images._grid()
    found, labels = images._figures(rng, 600)
    place = labels[:, list(images.FACTORS).index("place")]
    ground = np.median(found, axis=(1, 2), keepdims=True)
    away = np.abs(found - ground).sum(-1)
    middle = (away * x).sum((1, 2)) / away.sum((1, 2)), (away * y).sum((1, 2)) / away.sum((1, 2))
    for at, column in zip(middle, (place % 3, place // 3), strict=True):
        means = [at[column == i].mean() for i in range(3)]
        assert means[0] < means[1] - 0.05 < means[2] - 0.1


def test_every_shape_is_another():
    x, y = images._grid()
    masks = [images._distance(shape, x, y) < 0 for shape in images.SHAPES]
    assert all(0.1 < m.mean() < 0.8 for m in masks)
    for i, one in enumerate(masks):
        assert all((one != two).mean() > 0.03 for two in masks[:i])


def test_colours_are_those_of_the_colour_circle():
    import colorsys

    rng = np.random.default_rng(0)
    h, s, v = rng.random((3, 20))
    want = [colorsys.hsv_to_rgb(*one) for one in zip(h, s, v)]
    assert np.allclose(images.colours(h, s, v), want, atol=1e-6)


def test_nothing_but_arithmetic_goes_into_the_images():
    tree = ast.parse(inspect.getsource(images))
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert modules == {"__future__", "functools", "numpy"}
    called = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert not called & {"load", "fromfile", "frombuffer", "memmap", "loadtxt", "genfromtxt"}


def test_the_loss_is_the_mean_of_every_factor_s_cross_entropy():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(6, sum(images.FACTORS.values()), generator=rng)
    labels = torch.from_numpy(drawn(6)[1])
    losses, begin = [], 0
    for i, size in enumerate(images.FACTORS.values()):
        there = labels[:, i] != images.IGNORED
        losses.append(cross_entropy(logits[there, begin : begin + size], labels[there, i]))
        begin += size
    assert torch.allclose(vit.factors_loss(labels, logits), torch.stack(losses).mean())


def test_it_starts_with_heads_that_look_at_the_four_neighbours():
    torch.manual_seed(0)
    model = vit.model(recipe("vit")).vit.eval()
    model.set_attn_implementation("eager")
    pixels, _ = images.batch(np.random.default_rng(0), 4)
    normal = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    with torch.no_grad():
        seen = model(pixel_values=normal, output_attentions=True).attentions[0].mean(0)
    side = images.SIDE // 4
    for head, (down, right) in enumerate(vit.LOOKS):
        inside = [(r, c) for r in range(1, side - 1) for c in range(1, side - 1)]

        def share(d, e, head=head, inside=inside):
            return np.mean(
                [float(seen[head, 1 + r * side + c, 1 + (r + d) * side + c + e]) for r, c in inside]
            )

        assert share(down, right) > 0.3 > 5 * share(-down, -right)


def test_frozen_features_tell_the_factors_better_than_pixels(loaded):
    found = probes.factors(loaded, recipe("vit"), quick=True)
    assert found["factors right, mean"] > found["factors right, mean, pixels"] + 0.05
    assert found["factors right, mean, pixels"] > found["factors right, mean, most frequent"]


def test_frozen_features_tell_digits_better_than_pixels(loaded):
    found = probes.digits(loaded, recipe("vit"))
    what = f"digits right from {probes.DIGITS}, linear probe"
    assert found[what] > found[f"{what}, pixels"] > 0.9
    assert found[what] > found[f"{what}, untrained weights"] + 0.03


def test_it_takes_images_of_any_size_and_has_no_head(loaded):
    assert loaded.kind == "vision" and loaded.pooling == "cls"
    rows = loaded.preprocess.encode([np.zeros((8, 8, 1), np.uint8), np.zeros((40, 30, 3), np.uint8)])
    batch = loaded.preprocess.collate(rows)
    assert batch["pixel_values"].shape == (2, 3, 32, 32) and (batch["pixel_values"] == -1).all()
    assert type(loaded.base).__name__ == "ViTModel"
    assert not [n for n, _ in loaded.base.named_parameters() if "classifier" in n or "pooler" in n]


def test_a_build_of_three_steps_writes_a_folder_that_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "QUICK", 60)
    monkeypatch.setattr(probes, "digits", lambda loaded, recipe: {})
    losses = []
    made = build(
        "vit",
        tmp_path / "vit",
        steps=3,
        seed=5,
        quick=True,
        told=lambda step, steps, loss: losses.append(loss),
    )
    assert len(losses) == 3 and all(loss == loss for loss in losses)
    assert card.read(tmp_path / "vit") == made
    again = lt.load(tmp_path / "vit", device="cpu")
    assert sum(p.numel() for p in again.base.parameters()) == made.parameters
    first = next(vit.batches(recipe("vit")))[0]
    assert torch.equal(first["pixel_values"], next(vit.batches(recipe("vit")))[0]["pixel_values"])
