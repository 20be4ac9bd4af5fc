"""`load`: a model from builtin:NAME, a folder, a hub name or a module, after the checks of
`luthier.models.safety`."""

from __future__ import annotations

import copy
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from luthier.errors import LuthierError, ModelError
from luthier.models import architecture, builtin, safety, slim, weights
from luthier.models.model import Kind, Model, Pooling

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
FETCHED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
NOT_FETCHED = ["*/*.safetensors", "consolidated*", "onnx/*", "openvino/*", "original/*", "*.gguf"]
DTYPES = {
    **dict.fromkeys(("fp32", "float32", "float"), torch.float32),
    **dict.fromkeys(("fp16", "float16", "half"), torch.float16),
    **dict.fromkeys(("bf16", "bfloat16"), torch.bfloat16),
    **dict.fromkeys(("fp64", "float64", "double"), torch.float64),
}
SLACK = 50_000_000
"""Numbers that a configuration may ask for beyond twice what the files hold before it is refused unbuilt."""


def load(
    source: str | os.PathLike[str] | nn.Module,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
) -> Model:
    """Load a base model for adapting.

    source: `builtin:NAME`, a folder that save_pretrained wrote, a hub name (fetched into the hub's cache,
    then
        treated as a folder), or a torch.nn.Module, which is taken as it is.
    device: auto (cuda, then mps, then cpu), or a torch device. A module stays where it is under auto.
    dtype: auto (as stored; float16 is widened to float32 on the CPU), or float32, bfloat16, float16, float64.
    trust_remote_code: run the Python code that comes with a folder. Never needed for models of Transformers.

    A loaded model is in evaluation mode and none of its parameters asks for gradients. A module is put into
    evaluation mode, which its notes say, and is otherwise left as it was. Mamba's mixers compute by our own scan
    (`luthier.models.scan`). Nothing but a hub name reaches the
    network.
    Raises ModelError for a model that is unknown, incomplete, damaged or not safe to load.
    """
    if isinstance(source, nn.Module):
        return _from_module(source, device, dtype)
    name = os.fspath(source)
    if not isinstance(name, str) or not name or "\0" in name:
        raise ModelError(
            f"{name!r} is not a model. Name builtin:minilm, a folder, a hub name, or pass a torch.nn.Module."
        )
    place = _device(device)
    wanted = _dtype(dtype)
    digests: dict[str, str] = {}
    if name.startswith(builtin.PREFIX):
        folder = builtin.locate(name)
        digests = builtin.expected_weights(name)
    else:
        folder = _folder(source, trust_remote_code)
    checked = safety.inspect(folder, name, trust_remote_code)
    notes = list(checked.notes)
    stored = _stored(checked)
    if wanted is None:
        wanted = stored
        if stored is torch.float16 and place.type == "cpu":
            wanted = torch.float32
            notes.append(
                "its weights are stored in float16, which is slow and coarse on a CPU: widened to float32"
            )
    base = _build(checked, name, wanted, digests, notes)
    _scanned(base)
    base.requires_grad_(False)
    base.eval()
    with _model_errors(name, f"be moved to {place}"):
        base.to(place)
    return _described(base, name, checked, notes)


def _from_module(module: nn.Module, device: str | torch.device, dtype: str | torch.dtype) -> Model:
    notes = []
    if module.training:
        module.eval()
        notes.append("the module was in training mode and is now in evaluation mode")
    if device != "auto":
        module.to(_device(device))
    if (wanted := _dtype(dtype)) is not None:
        module.to(wanted)
    if _scanned(module):
        notes.append("its Mamba mixers compute by Luthier's scan from now on, with the same results")
    kind = architecture.kind_of(module)
    if kind != "module":
        notes.append(
            "a Transformers module comes without its tokenizer: set model.preprocess to feed it texts or "
            "images"
        )
    return Model(
        module,
        type(module).__name__,
        pooling=cast(Pooling, architecture.pooling_of(module, kind)),
        kind=cast(Kind, kind),
        generates=architecture.generates(module),
        notes=tuple(notes),
    )


def _scanned(base: nn.Module) -> int:
    """Our scan in every Mamba mixer, of which there are none where Transformers' Mamba was never imported."""
    if "transformers.models.mamba.modeling_mamba" not in sys.modules:
        return 0
    from luthier.models.scan import scanned

    return scanned(base)


def _folder(source: str | os.PathLike[str], trust_remote_code: bool) -> Path:
    """The local folder of a path or a hub name; hub files are fetched into the hub's own cache."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    name = os.fspath(source)
    if path.exists():
        raise ModelError(f"{name!r} is a file. Name the folder that holds it with its config.json.")
    if isinstance(source, os.PathLike) or not HUB_NAME.fullmatch(name) or name.endswith((".git", "-")):
        raise ModelError(
            f"There is no folder {name!r}, and it is not a hub name (owner/name). Name builtin:minilm, a "
            f"folder or a hub name."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        fetched = snapshot_download(
            name,
            allow_patterns=[*FETCHED, "*.py"] if trust_remote_code else FETCHED,
            ignore_patterns=NOT_FETCHED,
        )
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelError(
            f"No folder and no hub model is called {name!r}. Check the spelling; a private one needs `hf "
            f"auth login`."
        ) from None
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{name!r} is not a folder here, and the hub can't be reached for it ({_line(error)}). Go "
            f"online, name a folder, or use "
            "builtin:minilm."
        ) from None
    return Path(fetched)


def _device(asked: str | torch.device) -> torch.device:
    if asked == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except (RuntimeError, TypeError):
        raise ModelError(
            f"device={str(asked)[:40]!r} is not a device. Use auto, cpu, cuda, cuda:0 or mps."
        ) from None
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, True):
        raise ModelError(f"device={str(asked)!r} is not on this machine. Use auto or cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"device={str(asked)!r}: this machine has {torch.cuda.device_count()} GPUs, counted from cuda:0."
        )
    return device


def _dtype(asked: str | torch.dtype) -> torch.dtype | None:
    """None for auto."""
    if asked == "auto":
        return None
    found = DTYPES.get(asked.removeprefix("torch.")) if isinstance(asked, str) else asked
    if found not in DTYPES.values():
        raise ModelError(
            f"dtype={str(asked)[:40]!r} is not offered. Use auto, float32, bfloat16, float16 or float64."
        )
    return found


def _stored(folder: safety.Folder) -> torch.dtype:
    """The floating dtype in which most of the file's numbers are stored."""
    counts: Counter[torch.dtype] = Counter()
    for entry in folder.entries.values():
        if entry.dtype.is_floating_point:
            counts[entry.dtype] += (entry.end - entry.begin) // entry.dtype.itemsize
    return counts.most_common(1)[0][0] if counts else torch.float32


def _build(
    folder: safety.Folder, source: str, dtype: torch.dtype, digests: dict[str, str], notes: list[str]
) -> Any:
    """The base model with every one of its tensors from the files."""
    with _model_errors(source, "be built from its config.json"), quiet():
        if folder.remote_code and "auto_map" in folder.config:
            config, cls = _remote(folder, source)
        else:
            config = architecture.config_of(folder.config, source)
            cls = architecture.class_of(folder.config, config, source)
        cls = slim.class_with(cls, folder.config, source)
        options = architecture.options_of(cls, folder.entries)
        _check_size(cls, config, options, folder, source)
        state: dict[str, Tensor] = {}
        for path in folder.weights:
            state.update(weights.read(path, digests.get(path.name)))
        base, info = cast(Any, cls).from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, with their names
            **options,
        )
    _check_complete(base, info, set(state), source)
    if unused := sorted(info["unexpected_keys"]):
        notes.append(
            f"{len(unused)} tensors of the file belong to no part of {cls.__name__}: {_some(unused)}"
        )
    _read_generation(base, folder, notes)
    return base


def _remote(folder: safety.Folder, source: str) -> tuple[Any, type]:
    """Configuration and class from the folder's own code, which the user said to trust."""
    from transformers import AutoConfig
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    config = AutoConfig.from_pretrained(folder.path, trust_remote_code=True, local_files_only=True)
    named = folder.config["auto_map"]
    order = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM", "AutoModel")
    reference = next((named[k] for k in order if isinstance(named.get(k), str)), None)
    if reference is None:
        raise ModelError(
            f"{source!r} has an auto_map without {', '.join(order)}. Load it yourself and pass the module."
        )
    return config, get_class_from_dynamic_module(reference, folder.path, local_files_only=True)


def _check_size(cls: type, config: Any, options: dict[str, Any], folder: safety.Folder, source: str) -> None:
    """Refuse a configuration whose tensors the files can't fill, before anything of its size is allocated."""
    with ExitStack() as stack:
        for context in cast(Any, cls).get_init_context(
            torch.float32, False, False, None
        ):  # the meta device among them
            stack.enter_context(context)
        empty = cast(Any, cls)(copy.deepcopy(config), **options)
    asked = sum(t.numel() for t in (*empty.parameters(), *empty.buffers()))
    held = sum((e.end - e.begin) // e.dtype.itemsize for e in folder.entries.values())
    if asked > 2 * held + SLACK:
        raise ModelError(
            f"{source!r} has a config.json for a model of {asked:,} numbers, but its files hold {held:,}. "
            f"Fetch the model again."
        )


def _check_complete(base: Any, info: dict[str, Any], tensors: set[str], source: str) -> None:
    """Every tensor of the base comes from the files: the library would fill the others at random."""
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, wanted = mismatched[0]
        more = f" and {len(mismatched) - 1} more" if len(mismatched) > 1 else ""
        raise ModelError(
            f"{source!r} holds {name!r} as {tuple(found)} where {type(base).__name__} needs "
            f"{tuple(wanted)}{more}. Fetch the model again."
        )
    missing = set(info["missing_keys"])
    patterns = [re.compile(p) for p in getattr(base, "_keys_to_ignore_on_load_missing", None) or ()]
    # tied ones are filled by their twins, and what no file ever holds is computed (sinusoidal positions)
    exempt = set(getattr(base, "all_tied_weights_keys", None) or ())
    exempt |= set(getattr(base, "_keys_to_ignore_on_save", None) or ())
    for name, _ in base.named_parameters():  # the library calls these dispensable and draws them at random
        if name not in exempt and any(p.search(name) for p in patterns):
            held = any(t == name or t.endswith("." + name) or name.endswith("." + t) for t in tensors)
            missing |= set() if held else {name}
    if missing:
        raise ModelError(
            f"{source!r} lacks {len(missing)} tensors that {type(base).__name__} needs: "
            f"{_some(sorted(missing))}. Fetch the model again, "
            "or save it with the head that it was trained with."
        )


def _read_generation(base: Any, folder: safety.Folder, notes: list[str]) -> None:
    if not architecture.generates(base):
        return
    from transformers import GenerationConfig

    settings = folder.optional("generation_config.json")
    try:
        with quiet():
            if settings is None:
                base.generation_config = GenerationConfig.from_model_config(dict(folder.config))
            else:
                settings = {k: v for k, v in settings.items() if k not in safety.DROPPED}
                base.generation_config = GenerationConfig.from_dict(settings)
    except Exception as error:
        notes.append(f"its generation settings can't be used ({_line(error)}): the defaults are")


def _described(base: Any, name: str, folder: safety.Folder, notes: list[str]) -> Model:
    from luthier.models.images import ImagePreprocess
    from luthier.models.text import TextPreprocess
    from luthier.models.tokenizer import load_tokenizer

    kind = architecture.kind_of(base)
    pooling = architecture.pooling_of(base, kind)
    limit = None
    if (sentence := folder.optional("sentence_bert_config.json")) is not None:
        given = sentence.get("max_seq_length")
        limit = given if type(given) is int and given > 0 else None
    if (settings := folder.optional("1_Pooling/config.json")) is not None:
        chosen, note = architecture.sentence_pooling(settings)
        pooling = chosen or pooling
        notes += [note] if note else []
    preprocess: Any = None
    if kind == "vision":
        with _model_errors(name, "be given its image settings"):
            preprocess = ImagePreprocess.for_model(base, folder.optional("preprocessor_config.json"))
    elif folder.tokenizer:
        with _model_errors(name, "be given its tokenizer"), quiet():
            preprocess = TextPreprocess.for_model(load_tokenizer(folder, name), base, kind, limit)
            _ = preprocess.digest  # encodes the probes: a tokenizer that breaks only in use is found out here
    else:
        notes.append("its folder holds no tokenizer: feed it tensors, or set model.preprocess")
    notes += preprocess.notes if preprocess else ()
    return Model(
        base,
        name,
        preprocess=preprocess,
        pooling=cast(Pooling, pooling),
        kind=cast(Kind, kind),
        generates=architecture.generates(base),
        notes=tuple(notes),
    )


@contextmanager
def _model_errors(source: str, what: str) -> Iterator[None]:
    """Whatever a library raises over a stranger's file, the native tokenizers' panics included, becomes one
    line."""
    try:
        yield
    except (LuthierError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except MemoryError:
        raise ModelError(
            f"{source!r} needs more memory than there is. Use a smaller model or dtype=bfloat16."
        ) from None
    except torch.OutOfMemoryError:
        raise ModelError(
            f"{source!r} does not fit on the device. Use device=cpu, dtype=bfloat16 or a smaller model."
        ) from None
    except BaseException as error:
        raise ModelError(
            f"{source!r} can't {what}: {_line(error)}. Check the folder, or fetch the model again."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """The library's progress bar and load report are silenced here: what they would say is raised or
    noted."""
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled() and not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text[:200].rstrip(". ")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    shown = ", ".join(n[:80] for n in listed[:5])
    return f"{shown} and {len(listed) - 5} more" if len(listed) > 5 else shown
