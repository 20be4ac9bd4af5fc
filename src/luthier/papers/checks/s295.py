"""S295, state-offset tuning (Kang et al. 2025): what an offset of the state does to a selective scan, and what it is worth."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, AtMost, Beats

LENGTH, PROMPT, WIDTH, STATES = 512, 20, 64, 16
TASK = "verdicts"
SETTINGS: dict[str, Any] = {"steps": 400, "batch_size": 16}
SEEDS = range(5)

CHECK = Check(
    "S295",
    "An offset of the state is read by every token alike, where an initial state fades; both versions adapt a Mamba better than "
    "prompts do, the output version with fewer numbers.",
    claims=(
        Beats(
            "state_over_prompt",
            "accuracy of the state version above prompt tuning, mean of 5 seeds",
            arm="state",
            over="prompt_tuning",
            seeds=5,
        ),
        Beats(
            "state_over_prefix",
            "accuracy of the state version above a prefix at every block, mean of 5 seeds",
            arm="state",
            over="deep_prompt",
            seeds=5,
        ),
        Beats(
            "output_over_prompt",
            "accuracy of the output version above prompt tuning, mean of 5 seeds",
            arm="output",
            over="prompt_tuning",
            seeds=5,
        ),
        Beats(
            "output_over_prefix",
            "accuracy of the output version above a prefix at every block, mean of 5 seeds",
            arm="output",
            over="deep_prompt",
            seeds=5,
        ),
        AtMost("identity", "an offset of zero gives the base's logits (largest difference)", 1e-6),
        AtMost(
            "derivative",
            "before the gate the derivative of y_t is C_t for h', 1 for y' and C_t exp(A sum of Delta) for h_0 (largest "
            "difference, float64)",
            1e-5,
        ),
        AtLeast(
            "reach_least",
            "norm of the derivative for h' over the last quarter of 512 tokens against the first, at least",
            0.5,
        ),
        AtMost(
            "reach_most",
            "norm of the derivative for h' over the last quarter of 512 tokens against the first, at most",
            2.0,
        ),
        AtMost("fades", "the same ratio for the initial state h_0", 0.499),
        AtMost(
            "versions",
            "where C_t is held at c, the versions agree for y' = h' c (largest difference, float64)",
            1e-6,
        ),
        AtMost("cached", "decoding with a cache equals the whole pass (largest difference)", 1e-5),
        AtMost(
            "numbers",
            "numbers that the output version trains, as a share of those of the smaller prompt",
            0.999,
        ),
    ),
    covers=(
        "luthier.host.places.state",
        "luthier.methods.states.state_offset",
        "luthier.methods.states.initial_state",
        "luthier.methods.prompts.prompt_tuning",
        "luthier.methods.prompts.deep_prompt",
        "luthier.models.scan",
        "testbed:mamba",
    ),
    data="identities on Mambas of default initialisation; accuracy on builtin:mamba and a task that it was not pretrained on",
    against="prompt tuning, and prompt tokens at every block (a Mamba has no keys and values), 20 tokens, each arm at its own best "
    "of three learning rates",
    minutes=20,
    notes="Responses are measured by setting one entry of all channels to 1: "
    "the scan is linear in its state, so that they are the derivatives.",
)


def model(layers: int, dtype: Any = None, width: int = WIDTH, states: int = STATES) -> Any:
    """A Mamba of default initialisation, through our scan."""
    import torch
    import transformers

    from luthier.models.scan import scanned

    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: Any = transformers.MambaForCausalLM(
            transformers.MambaConfig(
                vocab_size=100, hidden_size=width, num_hidden_layers=layers, state_size=states, pad_token_id=0
            )
        )
    scanned(made)
    return made.to(dtype or torch.float32).eval()


def tokens(rows: int, length: int) -> Any:
    import torch

    return torch.randint(1, 100, (rows, length), generator=torch.Generator().manual_seed(0))


def parts() -> dict[str, Any]:
    import luthier as lt

    return {
        "state": lt.methods.StateOffset(),
        "output": lt.methods.StateOffset(version="output"),
        "initial": lt.methods.InitialState(),
    }


def numbers(made: Any) -> Any:
    """The trained tensor of the first layer."""
    return next(iter(made.at()[0].values.values()))


@CHECK.measures("derivative", "reach_least", "reach_most", "fades", cheap=True)
def what_a_token_reads(run: Any) -> None:
    """One layer, in float64: the response of what is read before the gate to each entry."""
    import torch

    from luthier.host import Adaptation, Adapted

    base = model(1, torch.float64)
    mixer = base.backbone.layers[0].mixer
    caught: dict[str, Any] = {}
    states = mixer.ssm_state_size
    hooks = [
        mixer.in_proj.register_forward_hook(lambda m, a, out: caught.update(gate=out.chunk(2, -1)[1])),
        mixer.x_proj.register_forward_hook(lambda m, a, out: caught.update(C=out[0, :, -states:])),
        mixer.dt_proj.register_forward_hook(lambda m, a, out: caught.update(step=out[0])),
    ]

    def before_the_gate(adapted: Any) -> Any:
        hook = mixer.out_proj.register_forward_pre_hook(lambda m, a: caught.update(y=a[0]))
        adapted({"input_ids": tokens(1, LENGTH)})
        hook.remove()
        return (caught["y"] / mixer.act(caught["gate"]))[0]

    with torch.no_grad():
        alone = before_the_gate(Adapted(base))
        C = caught["C"]
        decay = torch.nn.functional.softplus(caught["step"]).cumsum(0)[..., None] * -torch.exp(
            mixer.A_log.float()
        )
        expected = {
            "state": C[:, None].expand(-1, len(mixer.A_log), -1),
            "initial": C[:, None] * torch.exp(decay),
            "output": torch.ones_like(decay[..., :1]),
        }
        for name, part in parts().items():
            made = Adaptation.new(part, base).to(torch.float64)
            adapted: Any = Adapted(base)
            adapted.attach("main", made)
            entries, found = numbers(made), []
            for n in range(states if entries.dim() == 2 else 1):
                entries.zero_()
                (entries[:, n] if entries.dim() == 2 else entries).fill_(1.0)
                found.append(before_the_gate(adapted) - alone)
            adapted.detach()
            response = torch.stack(found, -1)  # (tokens, inner, states)
            run.record("derivative", (response - expected[name]).abs().max(), arm=name)
            norms = response.flatten(1).norm(dim=1)
            ratio = norms[-LENGTH // 4 :].mean() / norms[: LENGTH // 4].mean()
            for claim in {"state": ("reach_least", "reach_most"), "initial": ("fades",)}.get(name, ()):
                run.record(claim, ratio)
    for hook in hooks:
        hook.remove()


@CHECK.measures("identity", "versions", "cached", "numbers", cheap=True)
def the_whole_model(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted

    ids = tokens(3, 24)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    given = {"input_ids": ids, "attention_mask": mask}
    base = model(3)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, part in parts().items():
            made = Adaptation.new(part, base)
            adapted: Any = Adapted(base)
            alone = adapted(given).logits
            with adapted.attached(made):
                run.record("identity", (adapted(given).logits - alone).abs().max(), arm=name)
                for p in made.trainable().values():
                    p.copy_(torch.randn(p.shape, generator=rng) * 0.1)
                whole = adapted(given).logits
                if torch.allclose(whole, alone, atol=1e-3):
                    raise RuntimeError(f"{name} changes nothing, so that equality would show nothing")
                out = base(ids[:, :9], attention_mask=mask[:, :9], use_cache=True)
                found = [out.logits[:, -1]]
                for t in range(9, ids.shape[1]):
                    out = base(ids[:, t : t + 1], cache_params=out.cache_params, use_cache=True)
                    found.append(out.logits[:, -1])
                run.record("cached", (torch.stack(found, 1) - whole[:, 8:]).abs().max(), arm=name)

        held, logits = model(3, torch.float64), {}
        c = torch.randn(STATES, generator=rng, dtype=torch.float64)
        offsets = torch.randn(3, 2 * WIDTH, STATES, generator=rng, dtype=torch.float64) * 0.1
        for layer in held.backbone.layers:
            layer.mixer.x_proj.register_forward_hook(
                lambda m, a, out: torch.cat([out[..., :-STATES], c.expand(*out.shape[:-1], -1)], -1)
            )
        for name in ("state", "output"):
            made = Adaptation.new(parts()[name], held).to(torch.float64)
            for at, h in zip(made.at(), offsets, strict=True):
                next(iter(at.values.values())).copy_(h if name == "state" else h @ c)
            double: Any = Adapted(held)
            logits["none"] = double(given).logits
            with double.attached(made):
                logits[name] = double(given).logits
        if torch.allclose(logits["state"], logits["none"], atol=1e-3):
            raise RuntimeError("the offset changes nothing, so that equality would show nothing")
        run.record("versions", (logits["state"] - logits["output"]).abs().max())

    def count(method: Any) -> int:
        return int(Adaptation.new(method, base).counts()["method"])

    prompts = lt.methods.PromptTuning(length=PROMPT), lt.methods.DeepPrompt(length=PROMPT)
    run.record("numbers", count(parts()["output"]) / min(map(count, prompts)))


@CHECK.measures("state_over_prompt", "state_over_prefix", "output_over_prompt", "output_over_prefix")
def training(run: Any) -> None:
    import luthier as lt

    made = parts()
    arms = {
        "state": made["state"],
        "output": made["output"],
        "initial": made["initial"],
        "prompt_tuning": lt.methods.PromptTuning(length=PROMPT),
        "deep_prompt": lt.methods.DeepPrompt(length=PROMPT),
    }
    claims = ["state_over_prompt", "state_over_prefix", "output_over_prompt", "output_over_prefix"]
    run.compare(claims, run.model("mamba"), run.data(TASK), arms, seeds=SEEDS, **SETTINGS)
