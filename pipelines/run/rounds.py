"""What every rank of a run does: rounds of extract, label, begin_round, train, evaluate, report."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.util.queue import Queue

from pipelines.images.extraction import BlockEmbedder
from pipelines.nodes.runtime import STAGE_CPUS, STAGE_GPUS
from pipelines.run.meeting import Stage
from pipelines.run.stages import Labelling, Part, evaluation_stage, label_stage, labels_path
from reid_core import distributed, method
from reid_core.batch import SOURCE, TARGET, Domain, Round, Sizes
from reid_core.data.decode import ImageStore
from reid_core.data.loader import BatchLoader, TrainImages
from reid_core.evaluation.ranking import CameraFilter
from reid_core.labelling.engine import Engine
from reid_core.labelling.guard import Guard
from reid_core.labelling.tasks import Tasks
from reid_core.labels import Labels
from reid_core.models.embedder import build_embedder, save_embedder
from reid_core.seeding import derive
from reid_core.settings import group_size
from reid_core.storage import join
from reid_core.training import Learner, reduce_terms, train_round

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """All that a rank needs; travels to every train worker."""

    method: str
    config: Any
    seed: int
    folder: str  # the run folder, path or URI
    tables: ray.ObjectRef  # dict of IMAGES by "target", "source", "test", sorted by id
    stores: dict[str, ImageStore]  # by the same names
    meeting: Any  # handle of the Meeting actor
    events: Queue
    gpu: bool
    eval_every: int
    log_every: int
    camera_filter: CameraFilter
    guard: Guard
    threads: int
    loader_workers: int
    wait_s: float
    engine: Engine  # of the label stage
    tasks: Tasks  # of the ranking


class Stopped(Exception):
    """A reason to end the run that every rank has seen alike; not a crash to be retried."""


@contextmanager
def alike(where: str) -> Iterator[None]:
    """An error of the data or the settings here is the same on every rank: the run stops, and is not retried."""
    try:
        yield
    except ValueError as error:
        raise Stopped(f"{where}: {error}") from error


class Rounds(ABC):
    """The network, the objective and the rounds of one rank; a subclass says where images, stages and reports go."""

    def __init__(self, spec: RunSpec, images: dict[str, pa.Table], device: torch.device) -> None:
        self.spec = spec
        self.config = spec.config
        self.method = method.load(spec.method)
        self.rank = distributed.rank()
        self.world = distributed.world_size()
        self.device = device
        self.images = images
        self.best: dict[str, float] = {}
        self.completed = self.step = 0
        with alike("the start of the run"):
            self._build()

    @abstractmethod
    def extract(
        self, name: str, embed: BlockEmbedder | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """This rank's rows of a dataset, embedded with the weights it holds, or by another network."""

    @abstractmethod
    def meet(self, stage: Stage, part: Part, number: int) -> Any:
        """The result of a stage over all ranks' parts."""

    @abstractmethod
    def tell(self, kind: str, **event: Any) -> None:
        """Send an event to the driver; rank 0 only."""

    @abstractmethod
    def report(self, number: int, metrics: dict[str, float]) -> None:
        """Keep the state after a finished round."""

    def _build(self) -> None:
        config = self.config
        domains = 2 if "source" in self.images else 1
        embedder = build_embedder(
            config.model, bn_group=group_size(config), domains=domains, seed=self.spec.seed
        ).to(self.device)
        self.dtype = next(embedder.parameters()).dtype
        classes = len(self.images["source"].column("pid").unique()) if domains == 2 else 0
        sizes = Sizes(len(self.images["target"]), classes, embedder.dim)
        with torch.random.fork_rng():
            torch.manual_seed(derive(self.spec.seed, "objective"))
            objective = self.method.Objective(config, embedder, sizes).to(self.device, self.dtype)
        self.learner = Learner(embedder, objective)
        self.embed = BlockEmbedder(embedder, config.images, self.device)
        self.optimizer = method.optimizer(self.method, config, embedder, objective)
        self.scheduler = method.scheduler(self.method, config, self.optimizer)
        self.loader = BatchLoader(
            {
                number: TrainImages(
                    self.spec.stores[name], self.images[name].column("path").to_pylist()
                )
                for number, name in ((TARGET, "target"), (SOURCE, "source"))
                if name in self.images
            },
            method.views(self.method, config),
            batch_size=config.batch_size,
            seed=self.spec.seed,
            workers=self.spec.loader_workers,
            pin_memory=self.device.type == "cuda",
        )

    def run(self) -> None:
        """All rounds that are left; after the last one the labels and the evaluation of the final weights."""
        for number in range(self.completed, self.config.rounds + 1):
            clock = _Clock()
            labels, feature = self.label(number)
            clock.mark("label")
            self.evaluate(number, labels)
            clock.mark("evaluate")
            if number < self.config.rounds:
                metrics = self.train(self.begin(number, labels, feature))
                clock.mark("train")
                self.report(number, metrics | labels.metrics | clock.seconds)

    def label(self, number: int) -> tuple[Labels, dict[str, np.ndarray]]:
        """The label stage: LABELS of this round and the features it extracted, by domain name."""
        self.tell("stage", name="label", round=number)
        source = method.labels_from(self.method, self.config, number)
        extracted = source in ("extracted", "ids")
        names = [n for n in ("target", "source") if n in self.images]
        part: Part = {n: self.extract(n) for n in names} if extracted else self._memory_part()
        if source in ("online", "none", "ids"):
            part["group"] = self._of_first_rank(self._group(source))
        on_gpu = self.spec.gpu and self.spec.engine.shards == 1
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what torch keeps for itself the label task cannot have
        result = self.meet(
            Stage(
                name=f"labels of round {number}",
                function=label_stage,
                arguments={
                    "run": Labelling(
                        method=self.spec.method,
                        config=self.config,
                        folder=self.spec.folder,
                        guard=self.spec.guard,
                        engine=self.spec.engine,
                    ),
                    "images": {
                        n: self.images[n].select(["image_id", "path", "camid"]) for n in names
                    },
                    "number": number,
                },
                events=self.spec.events,
                num_cpus=0.0 if on_gpu else STAGE_CPUS,
                num_gpus=STAGE_GPUS if on_gpu else 0.0,
            ),
            part,
            number,
        )
        self.tell("labels", round=number, path=labels_path(self.spec.folder, number))
        labels = result["labels"]
        if source == "none":
            labels = replace(labels, label=np.arange(len(labels.label))[:, None])
        return labels, result["feature"] if extracted else {}

    def _group(self, source: method.LabelSource) -> np.ndarray:
        """Given labels (N, L) of the target images: equal numbers belong together, -1 is an outlier."""
        if source == "ids":
            pid = self.images["target"].column("pid").fill_null(-1).to_numpy()
            return np.where(pid > 0, pid, -1)[:, None]  # 0 is a distractor, of nobody
        label_NL = method.online_labels(self.learner.objective)
        if label_NL is not None:
            return label_NL.cpu().numpy()
        assert source == "none", (
            "labels_from() of this round says 'online': the objective needs labels()"
        )
        return np.full((len(self.images["target"]), 1), -1)

    def _memory_part(self) -> Part:
        """The rows of a memory, if the method has one to be clustered or judged and it is filled."""
        rows = method.memory_rows(self.learner.objective)
        return {} if rows is None else {"target": self._of_first_rank(rows.float().cpu().numpy())}

    def _of_first_rank(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All rows (N, ...) of the target images from rank 0, where every rank has the same."""
        ids = self.images["target"].column("image_id").to_numpy()
        return (ids[:0], rows[:0]) if self.rank else (ids, rows)

    def evaluate(self, number: int, labels: Labels) -> None:
        """Evaluate the weights after ``number`` rounds where it is due, and keep the best ones."""
        due = number % self.spec.eval_every == 0 or number == self.config.rounds
        if not due:
            return
        result: dict[str, float | None] = {}
        if "test" in self.images:
            self.tell("stage", name="evaluate", round=number)
            result = self._accuracies(number, "", self.embed.embedder)
            for name, network in method.networks(self.learner.objective).items():
                found = self._accuracies(number, name, network)
                result |= {f"{key}_{name}": value for key, value in found.items()}
                if self.rank == 0:
                    self._save(f"last_{name}", network)
        score = labels.metrics.get("label_free")
        self.tell("evaluation", round=number, label_free=score, **result)
        if self.rank == 0:
            self._keep_best(score, result.get("mAP"))

    def _accuracies(self, number: int, name: str, network: Any) -> dict[str, float | None]:
        embed = BlockEmbedder(network, self.config.images, self.device)
        part: Part = {"test": self.extract("test", embed)}
        stage = Stage(
            name=f"evaluation {name}".strip(),
            function=evaluation_stage,
            arguments={
                "images": self.images["test"],
                "camera_filter": self.spec.camera_filter,
                "tasks": self.spec.tasks,
            },
            events=self.spec.events,
        )
        return self.meet(stage, part, number)

    def _keep_best(self, label_free: float | None, accuracy: float | None) -> None:
        scores = {"last": float("inf"), "best_label_free": label_free, "best_on_test": accuracy}
        for name, score in scores.items():
            if score is not None and (name == "last" or score > self.best.get(name, -float("inf"))):
                if name != "last":
                    self.best[name] = score
                self._save(name, self.embed.embedder)

    def _save(self, name: str, network: Any) -> None:
        path = join(self.spec.folder, f"{name}.safetensors")
        save_embedder(network, self.config.model, self.config.images, path)

    def begin(self, number: int, labels: Labels, feature: dict[str, np.ndarray]) -> Round:
        """Hand the round's labels and features to the objective."""
        source = None
        if "source" in self.images:
            pid = self.images["source"].column("pid").to_numpy()
            known = np.unique(pid, return_inverse=True)[1][:, None]
            levels = labels.label.shape[1]
            source = self._domain("source", np.repeat(known, levels, axis=1), feature)
        target = self._domain("target", labels.label, feature)
        start = Round(
            number=number, rounds=self.config.rounds, step=self.step, target=target, source=source
        )
        torch.manual_seed(derive(self.spec.seed, "round", number))
        with alike(f"round {number}"):
            self.learner.objective.begin_round(start.to(self.device))
        distributed.copy_from_first_rank(self._state())
        return start

    def _domain(self, name: str, label: np.ndarray, feature: dict[str, np.ndarray]) -> Domain:
        images = self.images[name]
        row = feature.get(name)
        return Domain(
            image_id=torch.from_numpy(images.column("image_id").to_numpy().copy()),
            camid=torch.from_numpy(
                images.column("camid").fill_null(-1).to_numpy().astype(np.int64)
            ),
            label=torch.from_numpy(np.array(label)),
            feature=None if row is None else torch.from_numpy(np.array(row)).to(self.dtype),
        )

    def train(self, start: Round) -> dict[str, float]:
        """The optimiser steps of a round; returns the mean of each loss term and what else to log."""
        steps = method.num_steps(self.method, self.config, start)
        domains = {TARGET: start.target} | ({SOURCE: start.source} if start.source else {})
        with alike(f"round {start.number}"):
            rows = {
                number: method.batches(
                    self.method,
                    self.config,
                    domain,
                    derive(self.spec.seed, "batches", start.number, number),
                )
                for number, domain in domains.items()
            }
        batches = self._timed(self.loader.round(start, rows, steps))
        ends = (start.number / start.rounds, (start.number + 1) / start.rounds)
        history, pending, losses = [], [], []
        self.waited = 0.0
        for terms, scalars in train_round(
            self.learner, batches, self.optimizer, progress=ends, num_steps=steps
        ):
            losses = list(terms)
            pending.append(terms | scalars)
            if len(pending) == self.spec.log_every or len(history) + len(pending) == steps:
                with alike(f"round {start.number}"):
                    history += reduce_terms(pending, len(history))
                self.tell(
                    "steps", round=start.number, done=len(history), of=steps, terms=history[-1]
                )
                pending = []
        lr = self.optimizer.param_groups[0]["lr"]
        self.scheduler.step()
        self.step += steps
        state = [*self._state(), *self.learner.embedder.parameters()]
        with alike(f"round {start.number}"):
            checksum = distributed.check_equal_on_ranks(state, "the memory or a weight")
        means = {
            f"loss_{name}" if name in losses else name: float(np.mean([h[name] for h in history]))
            for name in history[0]
        }
        return means | {"checksum": checksum, "lr": lr, "seconds_wait_images": self.waited}

    def _state(self) -> list[torch.Tensor]:
        """The objective's memories: equal on all ranks."""
        return list(self.learner.objective.buffers())  # type: ignore[attr-defined]

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - started
            if batch is None:
                return
            yield batch.to(self.device)


class _Clock:
    """Seconds between marks."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def mark(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[f"seconds_{name}"] = now - self.last
        self.last = now
