"""S294, (IA)3 and T-Few (Liu et al. 2022): what the vectors are, how they fold, and the recipe for few rows."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Equals

TASK, ROWS, STEPS, SEEDS = "departments", 32, 150, range(5)
MODELS = ("llama", "t5", "minilm")

CHECK = Check(
    "S294",
    "(IA)3 starts as the base, folds into the weights and serves many tasks in one batch; with T-Few's losses, 32 rows make a "
    "multitask-tuned model better than the language modelling loss does and than its own in-context learning, at a tenth of "
    "the cost.",
    claims=(
        Beats(
            "losses",
            "accuracy from 32 rows: T-Few's losses at least as good as the language modelling loss alone, mean of 5 seeds",
            arm="t_few",
            over="language_modelling",
            ties=True,
            seeds=5,
        ),
        Beats(
            "in_context",
            "accuracy above in-context learning with the same 32 rows, mean of 5 seeds",
            arm="t_few",
            over="in_context",
            seeds=5,
        ),
        AtMost("cost", "multiply-adds of a prediction as a share of in-context learning's", 0.1),
        AtMost("ones", "vectors of ones leave the output as it is (largest difference)", 1e-6),
        AtMost("folded", "folded weights give the unfolded output (largest relative difference)", 1e-5),
        AtMost(
            "mixed",
            "a batch that mixes three tasks equals separate batches (largest relative difference)",
            1e-5,
        ),
        Equals(
            "count",
            "trained numbers, less L_enc (d_k + d_v + d_ff) + L_dec (2 d_k + 2 d_v + d_ff), of a decoder L (d_k + d_v + d_ff)",
            0,
        ),
    ),
    covers=(
        "luthier.methods.scaling.ia3",
        "luthier.signals.t_few",
        "luthier.methods.choices",
        "testbed:llama",
        "testbed:t5",
    ),
    data="the T5 testbed, which was tuned on many tasks, with 32 rows of one that it was not; identities also on Llama (rotary, "
    "grouped heads) and MiniLM",
    against="the same vectors with the language modelling loss, at their own best of three rates; the same rows as demonstrations",
    minutes=8,
    notes="AdamW instead of Adafactor, and no pretraining of the vectors on the multitask mixture. In-context learning gets as "
    "many of the 32 rows as demonstrations as the model reads well, chosen on validation; its cost counts those.",
)


def batch(model: Any, rows: int = 6, tokens: int = 12) -> dict[str, Any]:
    import torch

    ids = torch.randint(
        20, model.base.config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(0)
    )
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.kind == "encoder-decoder":
        made["decoder_input_ids"] = ids[:, :4]
    return made


def shaken(model: Any, seed: int) -> Any:
    """(IA)3 away from its start."""
    import torch

    import luthier as lt
    from luthier.host import Adaptation

    made = Adaptation.new(lt.methods.IA3(), model.base)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in made.trainable().values():
            p.mul_(1 + 0.3 * torch.randn(p.shape, generator=rng))
    return made


@CHECK.measures("ones", "folded", "mixed", "count", cheap=True)
def the_vectors(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.host.bank import Bank

    for name in MODELS:
        model = run.model(name)
        given = batch(model)
        adapted: Any = Adapted(model.base)

        def output(adapted: Any = adapted, given: Any = given) -> Any:
            out = adapted(given)
            return out.hidden if out.logits is None else out.logits

        with torch.no_grad():
            want = output()
            fresh = Adaptation.new(lt.methods.IA3(), model.base)
            with adapted.attached(fresh):
                run.record("ones", (output() - want).abs().max(), arm=name)
            tasks = {f"task{i}": shaken(model, i) for i in range(3)}
            separate = []
            for made in tasks.values():
                with adapted.attached(made):
                    separate.append(output())
            scale = separate[0].abs().max()
            if (separate[0] - want).abs().max() < 1e-2 * scale:
                raise RuntimeError("the vectors change nothing, so that equality would show nothing")
            adapted.attach("main", tasks["task0"])
            adapted.merge("main")
            run.record("folded", (output() - separate[0]).abs().max() / scale, arm=name)
            adapted.detach("main")
            bank, route = Bank(model.base, tasks), [f"task{i % 3}" for i in range(6)]
            with adapted.attached(bank.adaptation):
                out = bank(adapted, given, route)
            together = out.hidden if out.logits is None else out.logits
            apart = torch.stack([separate[i % 3][i] for i in range(6)])
            run.record("mixed", (together - apart).abs().max() / scale, arm=name)
        trained = sum(p.numel() for p in fresh.trainable().values())
        run.record("count", trained - formula(model.base.config), arm=name)


def formula(config: Any) -> int:
    """The page's count: d_k is the width of the keys, heads that are shared counted once."""
    if config.model_type == "t5":
        inner = config.num_heads * config.d_kv
        encoder = config.num_layers * (2 * inner + config.d_ff)
        return encoder + config.num_decoder_layers * (4 * inner + config.d_ff)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = heads * (config.hidden_size // config.num_attention_heads)
    inside = getattr(config, "intermediate_size", None) or config.n_inner or 4 * config.hidden_size
    return config.num_hidden_layers * (2 * width + inside)


@CHECK.measures("losses", "in_context", "cost")
def few_rows(run: Any) -> None:
    from dataclasses import replace

    import luthier as lt

    model, whole = run.model("t5"), run.data(TASK)
    few = replace(whole.limit(train=ROWS), validation=whole.validation)
    arms = {
        "t_few": (lt.methods.IA3(), {"signal": "t_few"}),
        "language_modelling": (language_modelling(), {"signal": "t_few"}),
    }
    found: dict[str, list[float]] = {}
    for seed in SEEDS:  # other rows for every seed
        rows = range(seed * ROWS, (seed + 1) * ROWS)
        data = replace(few, train=whole.train.select(list(rows)))
        for name, arm in arms.items():
            tuned = found.setdefault(name, [])
            method, own = arm
            if not tuned:
                rate = run.best_rate("losses", name, model, data, method, steps=STEPS, batch_size=8, **own)
                arms[name] = (method, {**own, "rate": rate})
            own = arms[name][1]

            def score(data: Any = data, method: Any = method, own: Any = own, seed: int = seed) -> float:
                fitted = run.fit(model, data, method, seed=seed, steps=STEPS, batch_size=8, **own)
                return float(fitted.score(whole.test)["accuracy"])

            tuned.append(run.once(["losses", name, "test", seed], score))
            run.record("losses", tuned[-1], arm=name, seed=seed, rate=own["rate"])
            run.say(f"S294: {name}, seed {seed}: {tuned[-1]:.3f}")
        best = run.once(["in_context", seed], lambda data=data: in_context(model, data, whole.test))
        run.say(f"S294: in context, seed {seed}: {best['accuracy']:.3f} with {best['shots']} shots")
        run.record("in_context", found["t_few"][-1], arm="t_few", seed=seed)
        run.record("in_context", best["accuracy"], arm="in_context", seed=seed, shots=best["shots"])
        if seed == 0:
            run.record("cost", best["cost"], shots=ROWS)


def language_modelling() -> Any:
    """(IA)3 whose only loss is that of the right answer's text."""
    from luthier.host.part import Phase
    from luthier.methods.scaling.ia3 import IA3
    from luthier.signals.t_few import TFew

    class LanguageModelling(IA3):
        def phases(self) -> Any:
            loss = TFew(lm=1.0, unlikely=0.0, normalised=0.0)
            return (Phase("train", objective=lambda run, batch: loss.mean(run.adapted(batch), batch)),)

    return LanguageModelling()


def in_context(model: Any, data: Any, test: Any) -> dict[str, float]:
    """Accuracy with demonstrations in front of each text, their number chosen on validation, and the cost of all 32."""
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from luthier.host import Adaptation, Adapted
    from luthier.methods.choices import Choices
    from luthier.train.batches import encode
    from luthier.train.predict import predictions

    labels = data.task.labels
    head = Choices(classes=len(labels))
    shown = [
        f"{text} {labels[int(y)]}" for text, y in zip(data.train.inputs, data.train.targets, strict=True)
    ]

    def answers(texts: list[str], shots: int) -> Any:
        front = "\n".join(shown[:shots])
        rows = [f"{front}\n{text}" if front else text for text in texts]
        split = type(test)(rows, None)
        adapted: Any = Adapted(model.base)
        adapted.attach("main", Adaptation.new(head, model.base))
        encoded = encode(model.preprocess, split, data.task, targets=False, head=head)
        return predictions(adapted.eval(), encoded, data.task, device=model.device)

    def accuracy(split: Any, shots: int) -> float:
        return float((np.asarray(answers(list(split.inputs), shots)).argmax(-1) == split.targets).mean())

    scored = {shots: accuracy(data.validation.select(list(range(100))), shots) for shots in (0, 1, 2, 4, 8)}
    best = max(scored, key=lambda shots: scored[shots])
    costs = []
    for shots in (0, ROWS):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            answers(list(test.inputs[:1]), shots)
        costs.append(counter.get_total_flops())
    return {"accuracy": accuracy(test, best), "shots": best, "cost": costs[0] / costs[1]}
