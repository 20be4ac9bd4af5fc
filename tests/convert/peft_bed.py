"""The same base under both libraries, and outputs that are compared."""

import contextlib
import json
import warnings

import peft
import torch
from safetensors.torch import load_file, save_file

from luthier.host import Adaptation, Adapted
from tests.host import bed

TYPES = {"bert": "FEATURE_EXTRACTION", "llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM"}
CLOSE = 1e-5


def base(name):
    model = bed.base(name)
    if (
        name == "t5"
    ):  # peft 0.21 keeps this function of transformers 4 for generation; a forward does not need it
        model._prepare_encoder_decoder_kwargs_for_generation = None
    return model


def batch(name):
    """Padding on the right: with padding on the left peft counts the padding's positions, and luthier does not."""
    made = bed.batch(name)
    if name in ("llama", "gpt2"):
        made["attention_mask"][1] = made["attention_mask"][1].flip(0)
    return made


def wrapped(name, config, seed=1):
    """A peft model whose trained tensors are away from their start."""
    rng = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base(name), config)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=rng) * 0.2)
    return model.eval()


def opened(name, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.filterwarnings("error", message=".*(missing|unexpected).*keys.*")
        return peft.PeftModel.from_pretrained(base(name), str(folder)).eval()


def fresh(name, method, seed=2):
    return bed.shaken(Adaptation.new(method, bed.base(name)), seed=seed)


@torch.no_grad()
def theirs(model, name, inputs=None):
    out = model(**(inputs or batch(name)))
    return out.logits if getattr(out, "logits", None) is not None else out.last_hidden_state


@torch.no_grad()
def ours(adaptation, name, inputs=None, dtype=torch.float32):
    model = Adapted(bed.base(name).to(dtype))
    model.attach("a", adaptation)
    out = model.eval()(inputs or batch(name))
    return out.logits if out.logits is not None else out.hidden


def same(name, y, z, moved=0.01):
    """Outputs of the content, prompts cut off and padding left out, are equal; and they are not the base's."""
    inputs = batch(name)
    z, bare = z[:, -y.shape[1] :], theirs(base(name), name)
    mask = inputs["attention_mask"] if y.shape[1] == inputs["attention_mask"].shape[1] else None
    keep = torch.ones(y.shape[:2]) if mask is None else mask
    bed.close(y * keep[:, :, None], z * keep[:, :, None], CLOSE)
    assert ((z - bare) * keep[:, :, None]).abs().max() > moved


@contextlib.contextmanager
def edited(folder):
    """adapter_config.json and the tensors of a folder, written back as they are left."""
    path, file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    config, tensors = json.loads(path.read_text()), load_file(file)
    yield config, tensors
    path.write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in tensors.items()}, file)
