"""fit: adapt a model to data by a method. In a folder it survives being killed; without one it keeps nothing."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from luthier.errors import OptionError
from luthier.host.probe import refuse_dead
from luthier.signals.objectives import Aims, Standardisation, objective_for
from luthier.train import checkpoint, memory
from luthier.train import shard as sharding
from luthier.train.batches import Batches, Encoded, encode, number_examples
from luthier.train.beginning import as_method, base_name, head_for, new_adaptation
from luthier.train.cache import prefix_cache
from luthier.train.carry import companions_of, goes_on, members_of, one_of, starting_there, with_head_of
from luthier.train.choices import check_signal
from luthier.train.fitted import TARGETS, Fitted, load_fitted, preprocess_card, unknown_tag
from luthier.train.folder import Log, RunFolder
from luthier.train.outcome import finish
from luthier.train.pairs import check_batches
from luthier.train.predict import mean_loss, predictions
from luthier.train.preflight import check_logits, check_steps, check_task, plain, report
from luthier.train.processes import Processes
from luthier.train.progress import Silent, progress_for
from luthier.train.run import Recipe, Run
from luthier.train.settings import Settings, describe, surroundings
from luthier.train.snapshot import own_randomness
from luthier.train.watch import Watch


def fit(
    model: Any,
    data: Any,
    method: Any,
    *,
    out: str | Path | None = None,
    seed: int = 0,
    epochs: float = 3,
    steps: int | None = None,
    batch_size: int = 32,
    micro_batch: int | None = None,
    rate: float | None = None,
    head_rate: float = 1e-2,
    warmup: float = 0.06,
    decay: float | None = None,
    clip: float | None = 1.0,
    patience: int | None = None,
    evaluate_every: int | None = None,
    precision: str = "fp32",
    checkpointing: bool = False,
    checkpoint_every: int | None = None,
    cache: str = "auto",
    class_weights: bool = False,
    max_new_tokens: int = 64,
    signal: str = "auto",
    head: Any = "auto",
    members: Mapping[str, Any] | None = None,
    streams: Mapping[str, Any] | None = None,
    after: Any = None,
    companions: Mapping[str, Any] | None = None,
    shard: bool = False,
    resume_anyway: bool = False,
    progress: bool | Silent = True,
) -> Fitted:
    """Adapt `model` to `data` by `method`; the base is given back untouched.

    out: the run's folder. The same call on the same folder goes on where a killed one stopped, bitwise (CPU, one process,
    fp32, same threads and versions), or returns what a finished one made. rate: of AdamW for all parts but the head; None:
    each part's own. steps: the budget that phases share; None: `epochs` passes. micro_batch: rows at once; the gradient is
    that of the whole batch. patience: evaluations without improvement after which the last phase stops; the best stays.
    shard: under torchrun, hold a part of the base on each process (`train.shard`); it stays so. Load the model on the CPU then.
    checkpoint_every: steps; None: by the clock. signal: "auto", a linear head on hidden states; for classification by a model
    that writes, "choices" ranks the labels' texts as its answers, and "t_few" trains that with T-Few's losses; "infoprompt"
    adds InfoPrompt's terms to a soft prompt's; "contrastive" (retrieval's own) tells a row's document from the batch's others. Options stand behind the name: "infoprompt head=0" (`luthier.signals.choose`).
    progress: whether to show any, or what shows it (`train.progress`). streams: further splits by name, for plans that ask
    for them. after: an adaptation (or what fit returned) for this base that this one begins with: what it comes to takes the place of the
    method's start, unless the method says itself what it takes over (`Part.carry`).
    companions: adaptations by name that the method's plan reads and does not train, such as a teacher.
    members: adaptations by name that the method refers to and that become part of what is made, frozen (`adapter_fusion`).
    Raises OptionError, DataError, ModelError or RunError, each with one line that names the fix.
    """
    settings = Settings(
        seed, epochs, steps, batch_size, micro_batch, rate, head_rate, warmup, decay, clip, patience, evaluate_every,
        precision, checkpointing, cache, class_weights, max_new_tokens, signal,
    )  # fmt: skip
    settings.check()
    if checkpoint_every is not None and checkpoint_every < 1:
        raise OptionError(f"checkpoint_every={checkpoint_every!r}: it must be at least 1.")
    check_task(model, data)
    check_signal(signal, model, data.task, head)
    method = as_method(method)
    if after is not None:
        after = one_of(model, after, "after")
        method = method if goes_on(after, method) else starting_there(method)
    companions = companions_of(method, companions or {}, model)
    members = members_of(method, members or {}, model)
    with ExitStack() as stack:
        processes = Processes(model.device)
        processes.sharded = shard
        if not shard:
            sharding.refuse_parts(model, "a fit without shard=True")
        processes.check_rows(batch_size, len(data.train))
        check_batches(data.task, batch_size, micro_batch, processes.world)
        stack.enter_context(own_randomness(seed + processes.rank, processes.device))
        head = head_for(model, data, signal) if head == "auto" else head
        description = describe(settings, model, data, method, head, streams or {}, members, companions, after)
        about = {"model": base_name(model), "data": plain(str(data.name))}
        adaptation = None
        if out is None or not (Path(out) / "run.json").exists():  # refused before a folder is made
            adaptation = new_adaptation(method, model, data, settings, head, members, after)
            if shard:
                sharding.check(adaptation, model.base, processes)
        folder = None
        if out is not None:
            folder = processes.main_first(
                lambda: RunFolder(
                    out,
                    description,
                    surroundings(model, processes),
                    resume_anyway=resume_anyway,
                    about=about,
                )
            )
            if folder is not None:
                stack.callback(folder.close)
            if (Path(out) / "DONE").is_file():
                return load_fitted(out, model)
        adaptation = adaptation or new_adaptation(method, model, data, settings, head, members, after)
        if shard:
            sharding.check(adaptation, model.base, processes)
        try:
            job = Job(
                model,
                data,
                adaptation,
                settings,
                processes,
                folder,
                out,
                head,
                streams or {},
                companions,
                progress,
                checkpoint_every,
            )
            with job:
                return job.go()
        except Exception as error:
            if folder is not None:
                folder.abandon()
            if out is not None and isinstance(error, OSError):
                raise checkpoint.advice(error, Path(out)) from error
            raise


class Job:
    """One call of fit, from encoded data to written results; as a context it leaves the base as it was."""

    def __init__(
        self,
        model: Any,
        data: Any,
        adaptation: Any,
        settings: Settings,
        processes: Processes,
        folder: RunFolder | None,
        out: str | Path | None,
        head: Any,
        streams: Mapping[str, Any],
        companions: Mapping[str, Any],
        progress: bool | Silent,
        checkpoint_every: int | None,
    ):
        from luthier.host import Adapted

        self.model, self.data, self.settings, self.processes = model, data, settings, processes
        self.folder, self.out, self.task, self.companions = folder, out, data.task, companions
        if not processes.sharded:
            model.base.to(processes.device)
        self.splits: dict[str, Encoded] = {
            name: encode(model.preprocess, split, data.task, head=head, adaptation=adaptation)
            for name, split in {"train": data.train, **streams, "validation": data.validation}.items()
            if split is not None
        }
        number_examples(self.splits.values())
        self.standardisation = Standardisation(**adaptation.about.get(TARGETS, {}))
        weights = self.class_weights() if settings.class_weights else ()
        self.objective = objective_for(
            data.task,
            Aims(weights, self.standardisation, model.kind != "encoder-decoder", settings.signal),
        )
        batches = Batches(
            self.splits,
            batch_size=settings.batch_size,
            micro_batch=settings.micro_batch,
            seed=settings.seed,
            device=processes.device,
            rank=processes.rank,
            world=processes.world,
        )
        self.per_epoch = batches.per_epoch()
        budget = settings.steps or max(1, round(settings.epochs * self.per_epoch))
        recipe = Recipe(
            budget,
            settings.seed,
            settings.rate,
            settings.head_rate,
            settings.decay,
            settings.warmup,
            settings.clip,
            settings.precision,
        )
        self.adapted = Adapted(model.base)
        self.adaptation = adaptation
        self.run = Run(
            self.adapted,
            adaptation.method.phases(),
            batches,
            self.objective,
            recipe,
            head=head,
            processes=processes,
        )
        self.progress: Silent = progress_for(progress, processes.main)
        text = data.task.kind == "text2text"
        self.watch = Watch(
            self.run,
            log=Log(folder.path / "log.jsonl" if folder else None),
            folder=folder,
            processes=processes,
            progress=self.progress,
            score=self.validate if "validation" in self.splits else None,
            metric="loss" if text else data.task.metric,
            higher_is_better=not text and getattr(data.task, "higher_is_better", True),
            evaluate_every=settings.evaluate_every or self.per_epoch,
            patience=settings.patience,
            checkpoint_every=checkpoint_every,
        )

    def __enter__(self) -> Job:
        self.adapted.attach("main", self.adaptation.to(self.processes.device))
        try:
            for name, one in self.companions.items():
                taught = with_head_of(one, self.run.head, self.model.base)
                self.adapted.attach(name, taught.to(self.processes.device))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        for name in list(self.adapted.adaptations):
            self.adapted.detach(name)

    def go(self) -> Fitted:
        run, watch = self.run, self.watch
        check_steps(run)
        check_logits(run, self.task)
        micro = min(self.settings.micro_batch or self.settings.batch_size, self.settings.batch_size)
        with memory.advised(micro):
            held = checkpoint.read_newest(Path(self.out) / "checkpoints") if self.out is not None else None
            if held is not None:
                watch.put_back(held[1], held[2])
            if self.processes.sharded:  # after whatever is cut from the base's weights
                sharding.shard(self.model.base, self.adapted.structure, self.processes)
                sharding.bring(run, self.processes.device)
            if held is not None:
                self.adapted.checkpoint(self.settings.checkpointing)  # detaching has ended it
                self.progress.say(f"Going on from step {run.total} of {sum(run.steps)}.")
            else:
                watch.log.cut(0)  # of a process that was killed before its first checkpoint
                self.adapted.checkpoint(self.settings.checkpointing)
                refuse_dead(self.adapted.eval(), "main", run.batches.stream("train").batch([0], run.device))
                run.enter()
                self.processes.check_equal(run.named)
                predicted = self.predict_memory()
                watch.predicted = predicted.peak if predicted else None
                for line, about in report(run, self.model, self.data, self.splits, predicted):
                    self.progress.say(line, about)
            with self.progress, self.frozen_prefix():
                watch.begin()
                run.go(watch)
                watch.end()
        return finish(self)

    def predict_memory(self) -> memory.Prediction | None:
        """Where the first phase takes gradient steps."""
        if self.processes.sharded or not self.run.named or self.run.phase.step is not None:
            return None
        return memory.predict(self.run)

    @contextmanager
    def frozen_prefix(self) -> Iterator[None]:
        """With the cache of frozen blocks' outputs, where the plan allows it; what it holds counts as memory."""
        if self.settings.cache == "off":
            yield
            return
        began = time.monotonic()
        folder = Path(self.out) / "cache" if self.out is not None else None
        key = json.dumps([self.model.fingerprint, self.data.digest, preprocess_card(self.model)])
        with prefix_cache(
            self.adapted,
            self.splits,
            folder,
            run=self.run,
            key=key,
            barrier=lambda point: checkpoint._barrier(point),
        ) as cache:
            self.watch.seconds["cache"] += time.monotonic() - began
            if isinstance(cache, str):
                self.watch.uncached = cache
            else:
                self.watch.cached = cache.bytes
                self.progress.say(
                    f"frozen blocks are run once: {memory.human(cache.bytes)} are kept of what they return",
                    "size",
                )
            yield
        self.processes.wait()  # others may still read from it
        if self.folder is not None and folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def validate(self) -> dict[str, float]:
        """Figures on the validation split."""
        from luthier.data.scores import scores

        split, precision = self.splits["validation"], self.settings.precision
        options: dict[str, Any] = {
            "device": self.processes.device,
            "precision": precision,
            "processes": self.processes.evaluating(),
        }
        if self.task.kind == "text2text":  # to write every answer would take longer than to train
            return {"loss": mean_loss(self.adapted, split, self.objective, **options)}
        if self.task.kind == "tagging":
            options["unknown"] = unknown_tag(self.adaptation, self.task)
        found = predictions(self.adapted, split, self.task, standardisation=self.standardisation, **options)
        return {k: float(v) for k, v in scores(self.task, self.data.validation.targets, found).items()}

    def class_weights(self) -> tuple[float, ...]:
        from luthier.data import class_weights

        if self.task.kind not in ("classification", "multilabel", "tagging"):
            raise OptionError(f"class_weights: a {self.task.kind} has no classes.")
        return tuple(float(w) for w in class_weights(self.data.train, self.task))
