"""S141, PETL-AST (Cappellazzo et al. 2024): adapters beside other light methods on an audio spectrogram transformer."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.checks.s078 import head_alone
from luthier.papers.claims import AtMost, Beats, Equals

WIDTH, LAYERS, HEADS = 96, 4, 4
FRAMES, BINS, PATCH = 64, 32, 8
PRETRAIN: dict[str, Any] = {"steps": 400, "batch_size": 32, "rate": 1e-3}
SPEAKERS_UNTIL, VALIDATION_FROM = 13, 24
"""Takes up to the first number pretrain the model on speakers; those from the second on are the validation rows of the digits."""
SETTINGS: dict[str, Any] = {"steps": 200, "batch_size": 16}
BOTTLENECK, RANK, PROMPTS = 16, 8, 33
"""Sizes at which adapters, LoRA and deep prompts train equal numbers."""
ARMS = {
    "lora": "LoRA",
    "deep_prompt": "prompts before every block",
    "bitfit": "biases alone",
    "linear probe": "the head alone",
}

CHECK = Check(
    "S141",
    "On spoken digits a parallel adapter scores above LoRA and deep prompts of as many numbers, biases alone and a linear probe; it begins "
    "as the frozen model, and both projections train.",
    claims=(
        *(
            Beats(
                arm.replace(" ", "_"), f"the adapter above {what}, mean of 3 seeds", arm="adapter", over=arm
            )
            for arm, what in ARMS.items()
        ),
        AtMost(
            "equal",
            "numbers of LoRA and deep prompts beside the adapter's (largest share of difference)",
            0.05,
        ),
        AtMost("start", "parallel adapters before training: largest difference of the features", 0.0),
        Equals("still", "tensors of the adapter that two steps leave where they were", 0),
    ),
    covers=(
        "luthier.methods.adapters.ast_adapter",
        "luthier.methods.adapters.bottleneck",
        "luthier.methods.low_rank.lora",
        "luthier.methods.prompts.deep_prompt",
        "luthier.methods.sparse.parameters",
    ),
    data="an AST of 4 layers, pretrained here on who speaks in takes 5 to 13 of the spoken digits (fsdd); the digits of takes 14 to 27, and "
    "the official test takes",
    against="LoRA and deep prompts of as many numbers, BitFit, a linear probe; each at its own best of three learning rates",
    minutes=8,
    notes="The page names it the check at most risk: the paper's claim is for an AST pretrained on AudioSet.",
)


def empty() -> Any:
    """The architecture with random weights."""
    import torch
    from transformers import ASTConfig, ASTModel

    config = ASTConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=4 * WIDTH,
        patch_size=PATCH, frequency_stride=PATCH, time_stride=PATCH, max_length=FRAMES, num_mel_bins=BINS,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ASTModel(config)


def adapter() -> Any:
    import luthier as lt

    return lt.methods.ASTAdapter(width=BOTTLENECK)


@CHECK.measures("start", "still", cheap=True)
def what_begins_and_what_moves(run: Any) -> None:
    import torch

    from luthier.host import Adaptation, Adapted

    base = empty().eval().requires_grad_(False)
    adapted: Any = Adapted(base)
    batch = {"x": torch.randn(4, FRAMES, BINS, generator=torch.Generator().manual_seed(0))}
    with torch.no_grad():
        want = adapted(batch).hidden
    made = Adaptation.new(adapter(), base)
    adapted.attach("main", made)
    with torch.no_grad():
        run.record("start", (adapted(batch).hidden - want).abs().max())
    before = {k: v.clone() for k, v in made.state().items()}
    optimiser = torch.optim.SGD(made.trainable().values(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        (adapted(batch).hidden - torch.roll(want, 1, 0)).square().mean().backward()
        optimiser.step()
    run.record("still", sum(torch.equal(v, before[k]) for k, v in made.state().items()))


def spectrograms(path: Any) -> dict[str, Any]:
    """Log-mel spectrograms (clips, FRAMES, BINS) of clips, and what is said of each."""
    from itertools import pairwise

    import numpy as np
    from transformers import ASTFeatureExtractor

    held = np.load(path, allow_pickle=False)
    audio, at = held["audio"].astype(np.float32) / 2**15, held["offsets"]
    extract = ASTFeatureExtractor(
        sampling_rate=8000, num_mel_bins=BINS, max_length=FRAMES, do_normalize=False
    )
    clips = [audio[a:b] for a, b in pairwise(at)]
    made = extract(clips, sampling_rate=8000, return_tensors="np")["input_values"].astype(np.float32)
    _, speaker = np.unique(held["speaker"], return_inverse=True)
    return {"x": made, "digit": held["y"].astype(np.int64), "speaker": speaker, "take": held["take"]}


def pretrained(heard: dict[str, Any]) -> Any:
    """The model, trained to tell who speaks."""
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy

    base = empty().train()
    x, y = torch.from_numpy(heard["x"]), torch.from_numpy(heard["speaker"])
    rng = np.random.default_rng(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = torch.nn.Linear(WIDTH, int(y.max()) + 1)
        optimiser = torch.optim.AdamW([*base.parameters(), *head.parameters()], lr=PRETRAIN["rate"])
        for _ in range(PRETRAIN["steps"]):
            rows = torch.from_numpy(rng.integers(len(x), size=PRETRAIN["batch_size"]))
            loss = cross_entropy(head(base(x[rows]).last_hidden_state.mean(1)), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return base.eval()


@CHECK.measures(*(arm.replace(" ", "_") for arm in ARMS), "equal")
def light_methods_on_spoken_digits(run: Any) -> None:
    import numpy as np

    import luthier as lt
    from luthier.data.split import Data, Split
    from luthier.data.task import Task
    from luthier.host import Adaptation
    from luthier.models.load import load

    class Probe(lt.methods.LoRA):
        """Only the head trains."""

        rate = 1e-2

        def phases(self):  # type: ignore[no-untyped-def]
            return head_alone(self.rate)

    folder = run.shared("fsdd")
    train, test = (spectrograms(folder / f"{part}.npz") for part in ("train", "test"))
    take = train["take"]
    mean, std = train["x"].mean(), train["x"].std()
    for part in (train, test):
        part["x"] = (part["x"] - mean) / (2 * std)
    early = take <= SPEAKERS_UNTIL
    model = load(pretrained({k: v[early] for k, v in train.items()}), device="cpu")

    def split(part: dict[str, Any], rows: Any) -> Any:
        return Split(part["x"][rows], part["digit"][rows])

    task = Task(
        kind="classification", modality="array", labels=tuple(map(str, range(10))), input="x", label="digit"
    )
    held_out = take >= VALIDATION_FROM
    data = Data(
        split(train, ~early & ~held_out),
        split(train, held_out),
        split(test, np.ones(len(test["x"]), dtype=bool)),
        task,
        "spoken digits",
    )
    methods = lt.methods
    arms = {
        "adapter": adapter(),
        "lora": methods.LoRA(rank=RANK, alpha=2.0 * RANK),
        "deep_prompt": methods.DeepPrompt(length=PROMPTS),
        "bitfit": methods.BitFit(),
        "linear probe": Probe(),
    }
    counts = {
        n: Adaptation.new(arms[n], model.base).counts()["method"] for n in ("adapter", "lora", "deep_prompt")
    }
    for name in ("lora", "deep_prompt"):
        run.record("equal", abs(counts[name] / counts["adapter"] - 1), arm=name)
    claims = [arm.replace(" ", "_") for arm in ARMS]
    run.compare(claims, model, data, arms, **SETTINGS)
