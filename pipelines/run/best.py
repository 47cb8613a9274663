"""Evaluations of a run, and the weights that are kept: the last ones, and the best so far."""

from typing import Any

import pyarrow as pa

from pipelines.images.extraction import BlockEmbedder
from pipelines.run.job import RunSpec
from pipelines.run.place import Part, Place, Stage
from pipelines.run.stages import evaluation_stage
from reid_core import distributed
from reid_core.models.embedder import Embedder, save_embedder
from reid_core.storage import join

Accuracies = dict[str, float | None]


class Best:
    """Evaluates and keeps weights; ``scores`` belong to the state of a run.

    Args:
        place: where the rounds run.
        spec: of the run.
        images: IMAGES of query and gallery, sorted by id; None where nothing can be evaluated.
    """

    def __init__(self, place: Place, spec: RunSpec, images: pa.Table | None) -> None:
        self.place = place
        self.spec = spec
        self.images = images
        self.scores: dict[str, float] = {}

    def evaluate(
        self, number: int, label_free: float | None, embedder: Embedder, others: dict[str, Any]
    ) -> None:
        """Evaluate the weights after ``number`` rounds where it is due, and keep those that are best.

        Args:
            number: of rounds that are done.
            label_free: score of their labels; None without one.
            embedder: the network of the run.
            others: further networks of the method, such as a teacher, by name.
        """
        if number % self.spec.job.eval_every and number != self.spec.config.rounds:
            return
        result: Accuracies = {}
        if self.images is not None:
            result = self._accuracies(number, "", embedder)
            for name, network in others.items():
                found = self._accuracies(number, name, network)
                result |= {f"{key}_{name}": value for key, value in found.items()}
                self._save(f"last_{name}", network)
        self.place.tell("evaluation", round=number, label_free=label_free, **result)
        self._save("last", embedder)
        for name, score in (("best_label_free", label_free), ("best_on_test", result.get("mAP"))):
            if score is not None and score > self.scores.get(name, -float("inf")):
                self.scores[name] = score
                self._save(name, embedder)

    def _accuracies(self, number: int, name: str, network: Any) -> Accuracies:
        embed = BlockEmbedder(network, self.spec.config.images, self.place.device)
        part: Part = {"test": self.place.extract("test", embed)}
        stage = Stage(
            name=f"evaluation {name}".strip(),
            function=evaluation_stage,
            arguments={
                "images": self.images,
                "camera_filter": self.spec.job.camera_filter,
                "tasks": self.spec.tasks,
            },
        )
        return self.place.meet(stage, part, number)

    def _save(self, name: str, network: Any) -> None:
        """Write the weights of a network, once for all ranks."""
        if distributed.rank() == 0:
            path = join(self.spec.folder, f"{name}.safetensors")
            save_embedder(network, self.spec.config.model, self.spec.config.images, path)
