"""S211, p-adapter (Wu et al. 2023): messages on attention's own map, and what they are worth beside an ordinary adapter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Equals

EXPONENTS, RATES = (1.25, 1.5, 1.75, 2.0), (1.0, 3.0, 9.0)
SETTINGS: dict[str, Any] = {"signal": "choices", "steps": 100, "batch_size": 16}
TASK = "verdicts"

CHECK = Check(
    "S211",
    "A p-adapter passes messages between an attention's queries and values on the attention's own map: at p = 2 the attention of their "
    "nodes, at other exponents reweighed by how far nodes are apart; it is at least as good as an adapter of as many numbers.",
    claims=(
        Beats(
            "score",
            "accuracy of the p-adapter, p chosen on validation, at least that of a bottleneck adapter at the same places, 3 seeds",
            arm="p_laplacian",
            over="adapter",
            ties=True,
        ),
        AtMost("equal", "difference of the two arms' numbers, as a share", 0.02),
        AtMost("two", "p = 2, mu = 0: messages against A times the value nodes (largest difference)", 1e-6),
        AtMost("damped", "p = 2, mu = 3: against a quarter of it (largest difference)", 1e-6),
        AtMost("loop", "other exponents against a loop over edges (largest difference, float64)", 1e-6),
        Equals("finite", "messages of identical nodes that are not finite or negative", 0),
        Equals("start", "values of the logits that differ from the base at the start", 0),
        AtMost(
            "map", "the map that it reads against the model's own, masks included (largest difference)", 1e-6
        ),
        Equals("causal", "weight that the map of a decoder gives to later tokens or to padding", 0),
    ),
    covers=(
        "luthier.methods.adapters.p_adapter",
        "luthier.methods.adapters.bottleneck",
        "luthier.host.bridge",
        "testbed:llama",
        "testbed:gpt2",
        "testbed:t5",
    ),
    data="the Llama, GPT-2 and T5 testbeds; a task of sentences that the T5 testbed was not pretrained on",
    against="an ordinary adapter behind the same attentions, of as many numbers; each at its own best of three learning rates",
    minutes=10,
    notes="There is no small vision-language model here yet: the comparison is one of text to text, by an encoder-decoder's cross- and "
    "self-attention, not of captions. Keys are not pooled.",
)


@CHECK.measures("two", "damped", "loop", "finite", cheap=True)
def what_messages_are(run: Any) -> None:
    import torch

    from luthier.methods.adapters.p_adapter import FLOOR, messages

    rng = torch.Generator().manual_seed(0)
    a = torch.softmax(torch.randn(3, 7, 9, generator=rng, dtype=torch.float64), -1)
    queries, values = (torch.randn(3, n, 5, generator=rng, dtype=torch.float64) for n in (7, 9))
    run.record("two", (messages(a, queries, values, 2.0, 0.0) - a @ values).abs().max())
    run.record("damped", (messages(a, queries, values, 2.0, 3.0) - a @ values / 4).abs().max())
    for p in (*EXPONENTS[:-1], 2.5):
        want = torch.zeros(3, 7, 5, dtype=torch.float64)
        for r in range(3):
            for i in range(7):
                m = [
                    a[r, i, j]
                    * (a[r, i, j] * (queries[r, i] - values[r, j]).square().sum() + FLOOR) ** ((p - 2) / 2)
                    for j in range(9)
                ]
                want[r, i] = sum(w * values[r, j] for j, w in enumerate(m)) / (sum(m) + 2 * 0.5 / p)
        run.record("loop", (messages(a, queries, values, p, 0.5) - want).abs().max(), arm=f"p = {p}")
        same = messages(a.float(), torch.ones(3, 7, 5), torch.ones(3, 9, 5), p, 0.5)
        run.record("finite", (~torch.isfinite(same) | (same < 0)).sum(), arm=f"p = {p}")


@CHECK.measures("start", "map", "causal", cheap=True)
def the_models_own_map(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.papers.checks.s282 import inputs

    class Watched(lt.methods.PLaplacian):  # type: ignore[misc,name-defined]
        """The same, which also tells of its map."""

        def edit(self, h: Any, t: Any, ctx: Any) -> Any:
            ctx.note("map", t.seen.weights())
            return super().edit(h, t, ctx)

    for name in ("llama", "gpt2", "t5"):
        model = run.model(name, dtype="float64")
        batch = inputs(model, 3, 9)
        batch["attention_mask"][1, 5:] = (
            0  # on the right: in eager double precision a Llama makes NaN of rows that see nothing
        )
        adapted: Any = Adapted(model.base)
        with torch.no_grad():
            alone = adapted(batch).logits
            model.base.set_attn_implementation("eager")
            raw = adapted({**batch, "output_attentions": True}).raw
            own = list(raw.attentions) if name != "t5" else own_of_t5(raw)
            model.base.set_attn_implementation("sdpa")
            adapted.attach("main", Adaptation.new(Watched(), model.base).to(torch.float64))
            out = adapted(batch)
        run.record("start", (out.logits != alone).sum(), arm=name)
        seen = batch["attention_mask"].bool()
        for layer, (mine, theirs) in enumerate(zip(out.notes["map"], own, strict=True)):
            if name != "t5":  # what stands on padding sees nothing: its weights are anyone's
                mine, theirs = (x.transpose(1, 2)[seen] for x in (mine, theirs))
                hidden = torch.ones(9, 9).triu(1).bool() | ~seen[:, None]
                run.record("causal", (mine * hidden[seen][:, None]).sum(), arm=f"{name}, {layer}")
            run.record("map", (mine - theirs).abs().max(), arm=f"{name}, {layer}")


def own_of_t5(raw: Any) -> list[Any]:
    """The maps in the order of the model's blocks: the encoder's, then self- and cross-attention of each block of the decoder."""
    made = list(raw.encoder_attentions)
    for one, other in zip(raw.decoder_attentions, raw.cross_attentions, strict=True):
        made += [one, other]
    return made


@CHECK.measures("score", "equal")
def beside_an_adapter(run: Any) -> None:
    import luthier as lt
    from luthier.host import Adaptation

    model, data = run.model("t5"), run.data(TASK)
    messages = lt.methods.PLaplacian()
    numbers = Adaptation.new(messages, model.base).counts()["method"]
    adapters = [lt.methods.Adapter(width=w, targets=messages.targets) for w in range(1, 65)]
    gaps = {a.width: Adaptation.new(a, model.base).counts()["method"] / numbers - 1 for a in adapters}
    adapter = min(adapters, key=lambda a: abs(gaps[a.width]))
    run.record("equal", abs(gaps[adapter.width]), width=adapter.width)
    tried: dict[tuple[float, float], float] = {}
    for p in EXPONENTS:
        method = replace(messages, p=p)
        rate = run.best_rate("score", f"p = {p}", model, data, method, rates=RATES, **SETTINGS)
        factor = rate / float(method.rate)
        tried[p, factor] = max(t["validation"] for t in run.trials if t["arm"] == f"p = {p}")
        run.say(f"S211: p = {p}: rate {rate:.2g}, validation {tried[p, factor]:.3f}")
    p, factor = max(tried, key=lambda k: tried[k])
    run.compare("score", model, data, {"p_laplacian": replace(messages, p=p)}, rates=(factor,), **SETTINGS)
    run.compare("score", model, data, {"adapter": adapter}, rates=RATES, **SETTINGS)
