"""What every rank of a run does: rounds of extract, label, begin_round, train, evaluate, report."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipelines.images.extraction import BlockEmbedder
from pipelines.run.best import Best
from pipelines.run.job import RunSpec
from pipelines.run.place import Part, Place, Stage, alike
from pipelines.run.stages import SOURCES, label_stage, labels_path
from reid_core import distributed, method
from reid_core.batch import SOURCE, TARGET, Domain, Round, Sizes
from reid_core.checkpoint import load_state, save_state
from reid_core.data.loader import BatchLoader, TrainImages
from reid_core.labels import Labels
from reid_core.models.embedder import build_embedder, save_embedder
from reid_core.seeding import derive
from reid_core.settings import group_size
from reid_core.training import Learner, reduce_terms, train_round


class Rounds:
    """The network, the objective and the rounds of one rank.

    Args:
        place: where they run.
        spec: of the run.
        images: IMAGES sorted by id, of ``target``, and of ``source`` and ``test`` where there are any.

    Raises:
        Stopped: the settings or the saved state do not fit.
    """

    def __init__(self, place: Place, spec: RunSpec, images: dict[str, pa.Table]) -> None:
        self.place = place
        self.spec = spec
        self.config = spec.config
        self.method = method.load(spec.method)
        self.images = images
        self.best = Best(place, spec, images.get("test"))
        self.completed = self.step = 0
        with alike("the start of the run"):
            self._build()
            self._restore()

    def _restore(self) -> None:
        with self.place.restored() as folder:
            if folder is None:
                return
            state = load_state(folder / "state.pt", self._modules())
        self.completed, self.step, self.best.scores = state["round"], state["step"], state["best"]
        self.place.tell("log", message=f"resumed after round {self.completed}")

    def _save(self, folder: Path) -> None:
        """Write the whole state after the rounds that are completed, and the network by itself."""
        extra = {
            "round": self.completed,
            "step": self.step,
            "best": self.best.scores,
            "seed": self.spec.job.seed,
        }
        save_state(folder / "state.pt", self._modules(), extra)
        path = str(folder / "embedder.safetensors")
        save_embedder(self.embed.embedder, self.config.model, self.config.images, path)

    def _modules(self) -> dict[str, Any]:
        return {
            "embedder": self.learner.embedder,
            "objective": self.learner.objective,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
        }

    def _build(self) -> None:
        config = self.config
        domains = 2 if "source" in self.images else 1
        embedder = build_embedder(
            config.model, bn_group=group_size(config), domains=domains, seed=self.spec.job.seed
        ).to(self.place.device)
        self.dtype = next(embedder.parameters()).dtype
        classes = len(self.images["source"].column("pid").unique()) if domains == 2 else 0
        sizes = Sizes(len(self.images["target"]), classes, embedder.dim)
        with torch.random.fork_rng():
            torch.manual_seed(derive(self.spec.job.seed, "objective"))
            objective = self.method.Objective(config, embedder, sizes).to(
                self.place.device, self.dtype
            )
        self.learner = Learner(embedder, objective)
        self.embed = BlockEmbedder(embedder, config.images, self.place.device)
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
            seed=self.spec.job.seed,
            workers=self.spec.job.loader_workers,
            pin_memory=self.place.device.type == "cuda",
        )

    def run(self) -> None:
        """All rounds that are left; after the last one the labels and the evaluation of the final weights."""
        for number in range(self.completed, self.config.rounds + 1):
            clock = _Clock()
            labels, feature = self.label(number)
            clock.mark("label")
            others = method.networks(self.learner.objective)
            score = labels.metrics.get("label_free")
            self.best.evaluate(number, score, self.embed.embedder, others)
            clock.mark("evaluate")
            if number < self.config.rounds:
                metrics = self.train(self.begin(number, labels, feature))
                clock.mark("train")
                self.completed = number + 1
                self.place.report(number, metrics | labels.metrics | clock.seconds, self._save)

    def label(self, number: int) -> tuple[Labels, dict[str, np.ndarray]]:
        """The label stage: LABELS of this round, and by domain name the features that ``begin_round`` asks for."""
        name = method.labels_from(self.method, self.config, number)
        domains = {n: self.images[n] for n in ("target", "source") if n in self.images}
        if SOURCES[name].rows == "extracted":
            part: Part = {domain: self.place.extract(domain, self.embed) for domain in domains}
        else:
            part = self._memory_part()
        if SOURCES[name].group:
            part["group"] = self._of_first_rank(self._group(name))
        stage = Stage(
            name=f"labels of round {number}",
            function=label_stage,
            arguments={
                "run": self.spec,
                "images": {
                    n: table.select(["image_id", "path", "camid"]) for n, table in domains.items()
                },
                "number": number,
            },
            gpu=self.spec.job.gpu and self.spec.engine.shards == 1,
        )
        labels, feature = self.place.meet(stage, part, number)
        self.place.tell("labels", round=number, path=labels_path(self.spec.folder, number))
        if name == "none":
            labels = replace(labels, label=np.arange(len(labels.label))[:, None])
        return labels, feature

    def _group(self, source: method.LabelSource) -> np.ndarray:
        """Given labels (N, L) of the target images: equal numbers belong together, -1 is an outlier."""
        if source == "ids":
            pid = self.images["target"].column("pid").fill_null(-1).to_numpy()
            return np.where(pid > 0, pid, -1)[:, None]  # 0 is a distractor, of nobody
        label_NL = method.online_labels(self.learner.objective)
        if label_NL is not None:
            return label_NL.cpu().numpy()
        assert source == "none", "labels_from() says 'online': the objective needs labels()"
        return np.full((len(self.images["target"]), 1), -1)

    def _memory_part(self) -> Part:
        """The rows of a memory, if the method has one to be clustered or judged and it is filled."""
        rows = method.memory_rows(self.learner.objective)
        return {} if rows is None else {"target": self._of_first_rank(rows.float().cpu().numpy())}

    def _of_first_rank(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All rows (N, ...) of the target images from rank 0, where every rank has the same."""
        ids = self.images["target"].column("image_id").to_numpy()
        return (ids[:0], rows[:0]) if distributed.rank() else (ids, rows)

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
        torch.manual_seed(derive(self.spec.job.seed, "round", number))
        with alike(f"round {number}"):
            self.learner.objective.begin_round(start.to(self.place.device))
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
                    derive(self.spec.job.seed, "batches", start.number, number),
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
            if len(pending) == self.spec.job.log_every or len(history) + len(pending) == steps:
                with alike(f"round {start.number}"):
                    history += reduce_terms(pending, len(history))
                self.place.tell(
                    "steps", round=start.number, done=len(history), of=steps, terms=history[-1]
                )
                pending = []
        lr = self.optimizer.param_groups[0]["lr"]
        self.scheduler.step()
        self.step += steps
        state = [*self._state(), *self.learner.embedder.parameters()]
        with alike(f"round {start.number}"):
            checksum = distributed.check_equal_on_ranks(state, "the memory or a weight")
        means = {}
        for name in history[0]:
            mean = float(np.mean([step[name] for step in history]))
            means[f"loss_{name}" if name in losses else name] = mean
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
            yield batch.to(self.place.device)


class _Clock:
    """Seconds between marks."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def mark(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[f"seconds_{name}"] = now - self.last
        self.last = now
