"""A rank of Ray Train: its rounds on its shards of the data, with stages as Ray tasks and a checkpoint a round."""

import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from ray.train.collective import broadcast_from_rank_zero

from pipelines.images.extraction import BadImages, BlockEmbedder, embed_all, shard_blocks
from pipelines.results.progress import forward_logs
from pipelines.run.meeting import Stage, meet
from pipelines.run.rounds import Rounds, RunSpec, Stopped, alike
from pipelines.run.stages import Part
from reid_core import distributed
from reid_core.checkpoint import load_state, save_state
from reid_core.models.embedder import save_embedder


def run_rounds(spec: RunSpec) -> dict[str, str]:
    """All rounds that are left, in one rank; returns why the run was stopped, if it was."""
    torch.set_num_threads(spec.threads)
    try:
        Rank(spec).run()
    except Stopped as reason:
        return {"stopped": str(reason)}
    return {}


class Rank(Rounds):
    """One train worker."""

    def __init__(self, spec: RunSpec) -> None:
        if distributed.rank() == 0:
            forward_logs(spec.events)
        device = ray.train.torch.get_device() if spec.gpu else torch.device("cpu")
        super().__init__(spec, ray.get(spec.tables), device)
        self.attempt = broadcast_from_rank_zero(uuid4().hex if self.rank == 0 else None)
        with alike("the start of the run"):
            self.completed = self._restore()

    def _restore(self) -> int:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return 0
        with checkpoint.as_directory() as folder:
            state = load_state(Path(folder) / "state.pt", self._modules())
        self.best = state["best"]
        self.step = state["step"]
        self.tell("log", message=f"resumed after round {state['round']}")
        return state["round"]

    def _modules(self) -> dict[str, Any]:
        return {
            "embedder": self.learner.embedder,
            "objective": self.learner.objective,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
        }

    def tell(self, kind: str, **event: Any) -> None:
        """Send an event to the driver; rank 0 only."""
        if self.rank == 0:
            self.spec.events.put({"kind": kind, **event})

    def extract(
        self, name: str, embed: BlockEmbedder | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """This rank's rows of a dataset, embedded with the weights it holds, or by another network."""
        shard = ray.train.get_dataset_shard(name)
        assert shard is not None, name
        image_id, feature, errors = embed_all(shard_blocks(shard), embed or self.embed)
        if errors:
            raise BadImages(
                f"{len(errors)} images were readable before and are not now: {errors[:3]}"
            )
        return image_id, feature

    def meet(self, stage: Stage, part: Part, number: int) -> Any:
        """Run a stage over all ranks' parts; a wrong-data error ends the run on all of them."""
        key = f"{self.attempt}/{number}/{stage.name}"
        try:
            return meet(
                self.spec.meeting,
                key,
                self.rank,
                self.world,
                part,
                stage,
                timeout_s=self.spec.wait_s,
            )
        except (ValueError, TimeoutError) as error:  # RayTaskError takes the class of its cause
            raise Stopped(f"{stage.name}: {getattr(error, 'cause', error)}") from error

    def report(self, number: int, metrics: dict[str, float]) -> None:
        """Report the finished round once, with the whole state as one checkpoint."""
        self.tell("round", round=number, **metrics)
        name = f"round-{number + 1:04d}"
        if self.rank:
            ray.train.report(metrics, checkpoint=None, checkpoint_dir_name=name)
            return
        with tempfile.TemporaryDirectory() as folder:
            extra = {
                "round": number + 1,
                "step": self.step,
                "best": self.best,
                "seed": self.spec.seed,
            }
            save_state(Path(folder) / "state.pt", self._modules(), extra)
            save_embedder(
                self.embed.embedder,
                self.config.model,
                self.config.images,
                f"{folder}/embedder.safetensors",
            )
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)
