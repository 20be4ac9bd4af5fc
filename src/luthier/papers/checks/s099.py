"""S099, P-Tuning v2 (Liu et al. 2022): what a deep prompt is, and what it is worth where every word is labelled."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, AtMost, Beats, Equals

LENGTH, LAYERS = 6, 6
SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 32}

CHECK = Check(
    "S099",
    "A prefix of its own in every layer is the base at length zero and what attention over past keys and values is otherwise; "
    "on a task that labels every word it beats a prompt at the input of as many numbers, with 0.1 to 3 % of the parameters.",
    claims=(
        Beats(
            "tagging",
            "entity F1 of deep prompts above that of prompts at the input with as many numbers, mean of 3 seeds",
            arm="deep",
            over="input_only",
        ),
        AtMost("empty", "a prefix of length 0 changes no output (largest difference)", 0.0),
        AtMost(
            "past",
            "a prefix is what the same keys and values as a cache are, at equal positions (largest difference)",
            1e-5,
        ),
        Equals("equal", "trained numbers of the two arms without the head (difference)", 0),
        AtLeast("share_least", "trained share without the head, per cent", 0.1),
        AtMost("share_most", "trained share without the head, per cent", 3.0),
    ),
    covers=(
        "luthier.methods.prefixes.p_tuning_v2",
        "luthier.methods.prompts.prompt_tuning",
        "luthier.host.places.attention",
        "luthier.data.recipes.entities",
        "testbed:llama",
    ),
    data="the embedded MiniLM and generated sentences with persons, places and organisations that share their names; identities "
    "on MiniLM and the Llama testbed",
    against="prompt tuning of as many numbers at its own best of three learning rates; the most frequent tag as a floor",
    minutes=10,
)


@CHECK.measures("empty", "past", cheap=True)
def what_it_is(run: Any) -> None:
    import torch
    from transformers import DynamicCache

    import luthier as lt
    from luthier.host import Adaptation, Adapted

    for name in ("minilm", "llama"):
        model = run.model(name, dtype="float64")
        rng = torch.Generator().manual_seed(0)
        ids = torch.randint(20, model.base.config.vocab_size, (3, 9), generator=rng)
        adapted: Any = Adapted(model.base)

        def output(given: Any, adapted: Any = adapted) -> Any:
            out = adapted(given)
            return out.hidden if out.logits is None else out.logits

        with torch.no_grad():
            want = output({"input_ids": ids})
            with adapted.attached(Adaptation.new(lt.methods.PTuningV2(length=0), model.base)):
                run.record("empty", (output({"input_ids": ids}) - want).abs().max(), arm=name)
            if name == "minilm":
                continue
            made = Adaptation.new(lt.methods.PTuningV2(length=4), model.base).to(torch.float64)
            cache = DynamicCache(config=model.base.config)
            for layer, at in enumerate(made.at()):
                cache.update(*(at.values[k].expand(3, -1, -1, -1) for k in ("K", "V")), layer)
            positions = torch.arange(9).expand(3, -1)
            past = model.base(input_ids=ids, past_key_values=cache, position_ids=positions).logits
            with adapted.attached(made):
                got = output({"input_ids": ids, "position_ids": positions})
            if torch.allclose(got, want, atol=1e-3):
                raise RuntimeError("the prefix changes nothing, so that equality would show nothing")
            run.record("past", (got - past).abs().max(), arm=name)


@CHECK.measures("tagging", "equal", "share_least", "share_most")
def every_word(run: Any) -> None:

    import luthier as lt
    from luthier.host import Adaptation

    model, data = run.model("minilm"), run.data("entities")
    methods = {
        "deep": lt.methods.PTuningV2(length=LENGTH),
        "input_only": lt.methods.PromptTuning(length=2 * LAYERS * LENGTH),
    }
    trained = {
        name: sum(p.numel() for p in Adaptation.new(m, model.base).trainable().values())
        for name, m in methods.items()
    }
    share = 100 * trained["deep"] / sum(p.numel() for p in model.base.parameters())
    run.record("equal", trained["deep"] - trained["input_only"])
    run.record("share_least", share)
    run.record("share_most", share)
    run.compare("tagging", model, data, methods, **SETTINGS)
