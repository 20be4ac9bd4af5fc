"""Generated images to pretrain on, with the factors that made them: figures on grounds, and glyphs of strokes.

A figure has a shape, a texture, a hue, a size and a place, and stands on a ground with a texture and a hue of
its own. A glyph is one of `GLYPHS` prototypes, a few curves drawn once at random; every drawing bends, turns,
shears, moves and thickens it. Some images are blurred by drawing them on a coarser grid. All is arithmetic on
random numbers that are handed in: no picture of anyone's is among them.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

SIDE = 32
"""Pixels of a side."""
GLYPHS = 192
SHAPES = (
    "disc",
    "square",
    "triangle",
    "star",
    "cross",
    "ring",
    "crescent",
    "bar",
    "flower",
    "half",
    "corner",
)
TEXTURES = ("plain", "stripes", "checks", "dots", "noise", "gradient")
HUES = 8
FACTORS: dict[str, int] = {
    "glyph": GLYPHS,
    "shape": len(SHAPES),
    "texture": len(TEXTURES),
    "hue": HUES,
    "ground_texture": len(TEXTURES),
    "ground_hue": HUES,
    "size": 3,
    "place": 9,
}
"""Factor -> number of its values, in the order of the labels' columns."""
IGNORED = -100
"""The label of a factor that an image does not have."""
STROKES, CONTROLS, POINTS = 3, 3, 16


@lru_cache(maxsize=1)
def prototypes() -> np.ndarray:
    """The control points of every glyph's strokes: (GLYPHS, STROKES, CONTROLS, 2), within -1…1.

    A stroke mostly begins where the one before it ended; glyphs of fewer strokes repeat their last.
    """
    rng = np.random.default_rng(20260101)
    made = rng.uniform(-0.85, 0.85, (GLYPHS, STROKES, CONTROLS, 2))
    joined = rng.random((GLYPHS, STROKES)) < 0.75
    for i in range(1, STROKES):
        made[:, i, 0] = np.where(joined[:, i, None], made[:, i - 1, -1], made[:, i, 0])
    short = rng.random(GLYPHS) < 0.4
    made[short, 2] = made[short, 1]
    return made


def batch(rng: np.random.Generator, n: int, glyphs: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """(images (n, SIDE, SIDE, 3) uint8, labels (n, factors) int64): a share `glyphs` of them are glyphs.

    Labels of factors that an image does not have are IGNORED.
    """
    drawn = round(n * glyphs)
    (glyph, kinds), (figure, factors) = _glyphs(rng, drawn), _figures(rng, n - drawn)
    # only glyphs are still themselves on a grid of 8 x 8
    images = np.concatenate([_coarser(rng, glyph, (8, 16)), _coarser(rng, figure, (16,))])
    labels = np.concatenate([kinds, factors])
    noise = rng.uniform(0, 0.06, (n, 1, 1, 1)).astype(np.float32)
    images = images + noise * rng.standard_normal(images.shape, dtype=np.float32)
    order = rng.permutation(n)
    pixels = np.clip(np.rint(images * 255), 0, 255).astype(np.uint8)
    return pixels[order], labels[order]


@lru_cache(maxsize=1)
def _grid() -> np.ndarray:
    """(x, y) of every pixel's middle, within -1…1: (2, SIDE, SIDE)."""
    at = (np.arange(SIDE, dtype=np.float32) + 0.5) * (2 / SIDE) - 1
    return np.stack(np.meshgrid(at, at))


def _column(values: np.ndarray) -> np.ndarray:
    """(n,) as (n, 1, 1) float32, to combine with pixels."""
    return values.astype(np.float32)[:, None, None]


def colours(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """RGB (n, 3) of hues (a turn is 1), saturations and values, each (n,)."""
    k = (np.asarray([5.0, 3.0, 1.0]) + 6 * hue[:, None]) % 6
    part = np.clip(np.minimum(k, 4 - k), 0, 1)
    return (value[:, None] * (1 - saturation[:, None] * part)).astype(np.float32)


def _textures(rng: np.random.Generator, kind: np.ndarray) -> np.ndarray:
    """How dark each pixel of a surface is, 0…1: (n, SIDE, SIDE) for textures `kind` (n,)."""
    x, y = _grid()
    n = len(kind)
    turn = rng.uniform(0, np.pi, n)
    f, phase = _column(rng.uniform(7, 16, n)), _column(rng.uniform(0, 2 * np.pi, n))
    u = _column(np.cos(turn)) * x + _column(np.sin(turn)) * y
    v = _column(np.cos(turn)) * y - _column(np.sin(turn)) * x
    out = np.zeros((n, SIDE, SIDE), np.float32)
    for name in TEXTURES[1:]:
        i = kind == TEXTURES.index(name)
        if name == "noise":
            out[i] = rng.random((int(i.sum()), SIDE // 2, SIDE // 2)).repeat(2, 1).repeat(2, 2)
        elif name == "gradient":
            out[i] = np.clip(0.5 + 0.5 * u[i], 0, 1)
        elif name == "stripes":
            out[i] = np.sin(f[i] * u[i] + phase[i]) > 0
        elif name == "checks":
            out[i] = np.sin(f[i] * u[i] + phase[i]) * np.sin(f[i] * v[i]) > 0
        else:
            out[i] = np.cos(f[i] * u[i] + phase[i]) + np.cos(f[i] * v[i]) > 0.7
    return out


def _surface(rng: np.random.Generator, kind: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Pixels (n, SIDE, SIDE, 3) of surfaces with these textures and colours (n, 3)."""
    depth = _column(rng.uniform(0.45, 0.9, len(kind)))
    return (1 - depth * _textures(rng, kind))[..., None] * colour[:, None, None, :]


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """About how far a point lies outside of a shape of radius 1, negative inside."""
    r, phi = np.hypot(u, v), np.arctan2(v, u)
    a, b = np.abs(u), np.abs(v)
    made = {
        "disc": lambda: r - 0.9,
        "square": lambda: np.maximum(a, b) - 0.8,
        "triangle": lambda: np.maximum(v - 0.6, np.maximum(0.87 * u, -0.87 * u) - 0.5 * v - 0.5),
        "star": lambda: r - (0.68 + 0.32 * np.cos(5 * phi)),
        "cross": lambda: np.minimum(np.maximum(a - 0.95, b - 0.3), np.maximum(a - 0.3, b - 0.95)),
        "ring": lambda: np.abs(r - 0.72) - 0.22,
        "crescent": lambda: np.maximum(r - 1, 0.8 - np.hypot(u - 0.5, v)),
        "bar": lambda: np.maximum(a - 1, b - 0.28),
        "flower": lambda: r - (0.62 + 0.38 * np.cos(3 * phi)),
        "half": lambda: np.maximum(r - 1, v - 0.05),
        "corner": lambda: np.minimum(
            np.maximum(np.abs(u + 0.6) - 0.3, b - 0.9), np.maximum(np.abs(v - 0.6) - 0.3, a - 0.9)
        ),
    }
    return made[shape]()


def _figures(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = _grid()
    value = {name: rng.integers(0, size, n) for name, size in FACTORS.items()}
    value["ground_hue"] = (value["hue"] + rng.integers(1, HUES, n)) % HUES
    radius = np.asarray([0.34, 0.5, 0.7])[value["size"]] * rng.uniform(0.9, 1.1, n)
    away = 0.42 * (1 - 0.4 * (value["size"] == 2))
    cx = (value["place"] % 3 - 1) * away + rng.uniform(-0.08, 0.08, n)
    cy = (value["place"] // 3 - 1) * away + rng.uniform(-0.08, 0.08, n)
    turn = rng.uniform(-0.4, 0.4, n)
    dx, dy = (x - _column(cx)) / _column(radius), (y - _column(cy)) / _column(radius)
    u = _column(np.cos(turn)) * dx + _column(np.sin(turn)) * dy
    v = _column(np.cos(turn)) * dy - _column(np.sin(turn)) * dx
    inside = np.empty((n, SIDE, SIDE), np.float32)
    for i, shape in enumerate(SHAPES):
        here = value["shape"] == i
        far = _distance(shape, u[here], v[here]) * _column(radius[here])
        inside[here] = np.clip(0.5 - far * (SIDE / 2), 0, 1)
    figure, ground = (
        _surface(
            rng,
            value[f"{of}texture"],
            colours(
                (value[f"{of}hue"] + rng.uniform(-0.3, 0.3, n)) / HUES,
                rng.uniform(0.45, 1, n),
                rng.uniform(low, 1, n),
            ),
        )
        for of, low in (("", 0.6), ("ground_", 0.35))
    )
    value["glyph"] = np.full(n, IGNORED)
    mixed = ground + inside[..., None] * (figure - ground)
    return mixed, np.stack([value[name] for name in FACTORS], 1).astype(np.int64)


def _glyphs(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    kind = rng.integers(0, GLYPHS, n)
    controls = prototypes()[kind] + rng.normal(0, 0.07, (n, STROKES, CONTROLS, 2))
    at = np.linspace(0, 1, POINTS)
    weights = np.stack([(1 - at) ** 2, 2 * at * (1 - at), at**2], 1)
    points = np.einsum("pc,nscd->nspd", weights, controls).reshape(n, STROKES * POINTS, 2)
    turn, shear = rng.normal(0, 0.15, n), rng.normal(0, 0.15, n)
    width, height = rng.uniform(0.55, 1.05, n), rng.uniform(0.7, 1.05, n)
    c, s = np.cos(turn), np.sin(turn)
    linear = np.stack([np.stack([c * width, -s + shear], 1), np.stack([s * width, c * height], 1)], 1)
    points = np.einsum("nij,npj->npi", linear, points) + rng.uniform(-0.12, 0.12, (n, 1, 2))
    points = points.astype(np.float32)
    pixels = _grid().reshape(2, -1).T
    # the squared distance of every pixel to the nearest point, by the binomial formula
    near = (points**2).sum(-1)[:, :, None] - 2 * points @ pixels.T
    far = np.sqrt(np.maximum(near.min(1) + (pixels**2).sum(-1), 0)).reshape(n, SIDE, SIDE)
    thick, soft = _column(rng.uniform(0.04, 0.16, n)), _column(rng.uniform(0.03, 0.12, n))
    ink = np.clip(0.5 + (thick - far) / soft, 0, 1)
    hue, grounds = rng.integers(0, HUES, n), rng.integers(1, HUES, n)
    ground = (hue + grounds) % HUES
    grey = rng.random(n) < 0.6
    light = rng.random(n) < 0.5
    values = [
        np.where(light == lit, rng.uniform(0.65, 1, n), rng.uniform(0, 0.3, n)) for lit in (True, False)
    ]
    front, back = (
        colours((h + rng.uniform(-0.3, 0.3, n)) / HUES, np.where(grey, 0, rng.uniform(0.4, 1, n)), v)
        for h, v in zip((hue, ground), values, strict=True)
    )
    images = back[:, None, None] + ink[..., None] * (front - back)[:, None, None]
    labels = np.full((n, len(FACTORS)), IGNORED, np.int64)
    labels[:, 0] = kind
    columns = list(FACTORS)
    labels[:, columns.index("hue")] = np.where(grey | ~light, IGNORED, hue)
    labels[:, columns.index("ground_hue")] = np.where(grey | light, IGNORED, ground)
    return images.astype(np.float32), labels


@lru_cache(maxsize=4)
def _blur(side: int) -> np.ndarray:
    """(SIDE, SIDE): the mean of every cell of a coarse grid, drawn large again by linear interpolation."""
    cells = np.repeat(np.eye(side, dtype=np.float32), SIDE // side, 1) / (SIDE // side)
    at = np.clip((np.arange(SIDE) + 0.5) * side / SIDE - 0.5, 0, side - 1)
    low = np.minimum(at.astype(int), side - 2)
    large = np.zeros((SIDE, side), np.float32)
    large[np.arange(SIDE), low] = 1 - (at - low)
    large[np.arange(SIDE), low + 1] += at - low
    return large @ cells


def _coarser(rng: np.random.Generator, images: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    """A quarter of the images as a grid of each of these sides would show them, the others as they are."""
    out = images.astype(np.float32)
    chance = rng.random(len(images))
    for i, side in enumerate(sides):
        here = (chance >= i * 0.25) & (chance < (i + 1) * 0.25)
        m = _blur(side)
        rows = np.matmul(m, out[here].reshape(-1, SIDE, SIDE * 3)).reshape(-1, SIDE, SIDE, 3)
        out[here] = np.matmul(m, rows)
    return out
