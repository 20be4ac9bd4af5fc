"""Our selective scan equals Transformers' own, forwards, backwards, with padding and with a cache."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import DynamicCache, MambaConfig, MambaForCausalLM

import luthier as lt
from luthier.errors import SiteError
from luthier.host import Adaptation, Adapted
from luthier.host.probe import refuse_dead
from luthier.methods.low_rank.lora import LoRA
from luthier.models import scan
from luthier.models.scan import plain_scan, scanned, selective_scan


def close(a: torch.Tensor, b: torch.Tensor, relative: float = 1e-5) -> None:
    assert (a - b).abs().max() <= relative * max(1.0, b.abs().max().item())


def pair(**options: object) -> tuple[nn.Module, nn.Module]:
    """Transformers' model, and a copy of it that computes by our scan."""
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=40, hidden_size=24, num_hidden_layers=2, state_size=4, initializer_range=0.3, **options
    )
    theirs = MambaForCausalLM(config).eval()
    ours = copy.deepcopy(theirs)
    assert scanned(ours) == 2 and scanned(ours) == 0
    return theirs, ours


def rows(tokens: int = 11, left: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 40, (3, tokens), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :left] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "CHUNK", 1)
    monkeypatch.setattr(scan, "SHORTEST", 3)


@pytest.mark.parametrize("left", [0, 4])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", [{}, {"use_bias": True, "use_conv_bias": False}, {"conv_kernel": 3}])
def test_outputs_and_all_gradients_equal_transformers(
    left: int, training: bool, options: dict, short_chunks: None
) -> None:
    found = []
    for model in pair(**options):
        model.train(training)
        x = rows(left=left)
        embedded = model.get_input_embeddings()(x.pop("input_ids")).detach().requires_grad_()
        out = model(inputs_embeds=embedded, use_cache=False, **x)
        (out.logits * torch.linspace(-1, 1, out.logits.numel()).view_as(out.logits)).mean().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((out.logits, embedded.grad, grads))
    (want, at_input, grads), (got, ours_at_input, ours) = found
    close(got, want)
    assert set(ours) == set(grads) and any(n.endswith("conv1d.weight") for n in grads)
    for name, theirs, mine in (("input", at_input, ours_at_input), *((n, grads[n], ours[n]) for n in grads)):
        scale = theirs.abs().max()
        assert scale > 0 and (mine - theirs).abs().max() <= 1e-5 * max(1.0, scale), name
        assert (mine - theirs).abs().max() <= 1e-4 * scale, name


@pytest.mark.parametrize("left", [0, 4])
@pytest.mark.parametrize("prefilled", [1, 2, 7])
@torch.no_grad()
def test_prefill_and_decoding_equal_transformers_and_the_whole(
    left: int, prefilled: int, short_chunks: None
) -> None:
    theirs, ours = pair()
    x = rows(left=min(left, prefilled - 1))
    ids, mask = x["input_ids"], x["attention_mask"]
    whole = ours(**x, use_cache=False).logits
    caches = [DynamicCache(config=theirs.config) for _ in range(2)]
    for model, cache in zip((theirs, ours), caches, strict=True):
        got = [
            model(ids[:, :prefilled], cache_params=cache, attention_mask=mask[:, :prefilled], use_cache=True)
        ]
        got += [
            model(ids[:, i : i + 1], cache_params=cache, use_cache=True)
            for i in range(prefilled, ids.shape[1])
        ]
        logits = torch.cat([o.logits for o in got], 1)
        close(logits * mask[..., None], whole * mask[..., None])
    for one, two in zip(caches[0].layers, caches[1].layers, strict=True):
        close(two.recurrent_states[0], one.recurrent_states[0])
        close(two.conv_states[0], one.conv_states[0])


@torch.no_grad()
def test_several_tokens_after_a_cache_are_what_transformers_makes_of_them() -> None:
    logits = []
    for model in pair():
        cache = DynamicCache(config=model.config)
        ids = rows()["input_ids"]
        model(ids[:, :5], cache_params=cache, use_cache=True)
        logits.append(model(ids[:, 5:], cache_params=cache, use_cache=True).logits)
    close(logits[1], logits[0])


@torch.no_grad()
def test_generation_writes_the_same_tokens() -> None:
    theirs, ours = pair(pad_token_id=0, eos_token_id=None, bos_token_id=1)
    options = dict(rows(left=4), max_new_tokens=6, do_sample=False)
    want = theirs.generate(**options)
    assert torch.equal(ours.generate(**options), want)
    assert torch.equal(ours.generate(**options, use_cache=False), want)


def arguments(dtype: torch.dtype = torch.float64, tokens: int = 7) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    n, width, states = 2, 3, 4
    made = [
        torch.randn(n, tokens, width, generator=rng),
        torch.rand(n, tokens, width, generator=rng),
        -torch.rand(width, states, generator=rng) - 0.1,
        torch.randn(n, tokens, states, generator=rng),
        torch.randn(n, tokens, states, generator=rng),
        torch.randn(n, width, states, generator=rng),
    ]
    return [t.to(dtype).requires_grad_() for t in made]


def test_the_formula_step_by_step_from_an_initial_state(short_chunks: None) -> None:
    u, dt, A, B, C, h = (t.detach() for t in arguments())
    got, last = selective_scan(u, dt, A, B, C, h)
    for t in range(u.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + dt[:, t, :, None] * B[:, t, None] * u[:, t, :, None]
        close(got[:, t], torch.einsum("bdn,bn->bd", h, C[:, t]), 1e-12)
    close(last, h, 1e-12)


def test_two_halves_are_the_whole(short_chunks: None) -> None:
    u, dt, A, B, C, h = arguments()
    want, last = selective_scan(u, dt, A, B, C, h)
    first, between = selective_scan(u[:, :4], dt[:, :4], A, B[:, :4], C[:, :4], h)
    second, end = selective_scan(u[:, 4:], dt[:, 4:], A, B[:, 4:], C[:, 4:], between)
    close(torch.cat([first, second], 1), want, 1e-12)
    close(end, last, 1e-12)


def test_gradients_of_every_argument_and_their_gradients(short_chunks: None) -> None:
    given = arguments(tokens=4)
    assert torch.autograd.gradcheck(selective_scan, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(selective_scan, given, fast_mode=True)


def test_under_functional_transforms() -> None:
    u, *rest = arguments()

    def loss(row: torch.Tensor) -> torch.Tensor:
        return selective_scan(row, *rest)[0].square().sum()

    want = torch.autograd.grad(loss(u), u)[0]
    close(torch.func.grad(loss)(u.detach()), want, 1e-12)
    many = torch.func.vmap(torch.func.grad(loss))(torch.stack([u.detach(), 2 * u.detach()]))
    close(many[0], want, 1e-12)


def test_autocast_leaves_the_recurrence_in_float32() -> None:
    given = [t.detach().float() for t in arguments()]
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = selective_scan(*given)
    assert y.dtype is torch.float32
    close(y, plain_scan(*given)[0], 1e-6)


def test_only_states_between_chunks_are_kept() -> None:
    rows_, tokens, width, states = 4, 512, 64, 16
    saved: dict[int, int] = {}

    def note(t: torch.Tensor) -> torch.Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    u, dt = (torch.rand(rows_, tokens, width, requires_grad=True) for _ in range(2))
    B, C = (torch.rand(rows_, tokens, states) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        selective_scan(u, dt, -torch.rand(width, states), B, C)
    every_state = 4 * rows_ * tokens * width * states
    assert sum(saved.values()) < 0.25 * every_state


def test_a_loaded_folder_scans_and_is_saved_as_it_was(tmp_path) -> None:
    theirs, _ = pair()
    theirs.save_pretrained(tmp_path / "a")
    loaded = lt.load(tmp_path / "a", device="cpu")
    mixers = [m for m in loaded.base.modules() if isinstance(m, scan.ScanMixer)]
    assert len(mixers) == 2 and not any("forward" in m.__dict__ for m in loaded.base.modules())
    assert list(loaded.base.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in loaded.base.named_modules()] == [n for n, _ in theirs.named_modules()]
    loaded.base.save_pretrained(tmp_path / "b")
    again = MambaForCausalLM.from_pretrained(tmp_path / "b")
    assert all(torch.equal(again.state_dict()[k], v) for k, v in theirs.state_dict().items())
    x = rows()
    for two in (copy.deepcopy(loaded.base), pickle.loads(pickle.dumps(loaded.base))):
        assert torch.equal(two(**x).logits, loaded.base(**x).logits)


def test_a_module_that_is_handed_in_scans_and_its_notes_say_so() -> None:
    theirs, _ = pair()
    loaded = lt.load(theirs)
    assert any("scan" in note for note in loaded.notes)
    assert any(isinstance(m, scan.ScanMixer) for m in theirs.modules())


@pytest.mark.parametrize("targets", ["ssm.dt", "ssm.in | ssm.x | ssm.dt | ssm.out"])
@torch.no_grad()
def test_low_rank_edits_act_and_merge_into_what_transformers_reads(targets: str) -> None:
    theirs, ours = (model.requires_grad_(False) for model in pair())
    adapted, x = Adapted(ours), rows(left=3)
    adapted.attach("main", Adaptation.new(LoRA(targets=targets, rank=2), ours))
    plain = ours(**x).logits
    for p in adapted.adaptations["main"].trainable().values():
        p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) * 0.5)
    edited = adapted(x).logits
    assert not torch.allclose(edited, plain, atol=1e-3)
    cache = DynamicCache(config=ours.config)
    ids, mask = x["input_ids"], x["attention_mask"]
    out = [ours(ids[:, :6], attention_mask=mask[:, :6], cache_params=cache, use_cache=True)]
    out += [ours(ids[:, i : i + 1], cache_params=cache, use_cache=True) for i in range(6, ids.shape[1])]
    close(torch.cat([o.logits for o in out], 1) * mask[..., None], edited * mask[..., None])
    adapted.merge("main")
    theirs.load_state_dict(ours.state_dict())
    close(theirs(**x).logits, edited, 2e-5)
    adapted.detach("main")
    assert torch.equal(ours(**x).logits, plain)


def test_time_step_is_a_site_of_ours_and_dead_in_transformers_own() -> None:
    for model, dead in zip(pair(), (True, False), strict=True):
        adapted = Adapted(model)
        adapted.attach("main", Adaptation.new(LoRA(targets="ssm.dt", rank=1), model))
        if dead:
            with pytest.raises(SiteError, match="bypasses"):
                refuse_dead(adapted, "main", rows())
        else:
            refuse_dead(adapted, "main", rows())
        adapted.detach("main")


def test_an_edit_of_the_convolution_acts() -> None:
    _, ours = pair()
    x = rows()
    want = ours(**x).logits
    conv = ours.backbone.layers[0].mixer.conv1d
    handle = conv.register_forward_hook(lambda module, args, out: 2 * out)
    assert not torch.allclose(ours(**x).logits, want, atol=1e-3)
    handle.remove()
    assert torch.equal(ours(**x).logits, want)
