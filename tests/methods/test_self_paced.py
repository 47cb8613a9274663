"""SpCL's self-paced part of the hybrid memory: its settings, its threshold over rounds, workers and a restart."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from pipelines.run.job import RunSpec, TrainJob
from pipelines.run.stages import label_stage, labels_path
from reid_core import method as contract
from reid_core.batch import Round
from reid_core.distributed import check_equal_on_ranks
from reid_core.errors import UsageError
from reid_core.labelling.clusters import cluster
from reid_core.labelling.engine import Engine
from reid_core.labelling.reliability import THRESHOLD
from reid_core.labelling.tasks import InProcess
from reid_core.labels import Features, Labels
from reid_core.methods import hybrid_memory
from reid_core.tables import IMAGES, LABELS, read_table
from reid_core.training import reduce_terms, train_round
from tests.methods import small_run
from tests.ranks import run_ranks
from tests.reference.features import people

SELF_PACED = {"eps": 0.5, "eps_gap": 0.1, "k1": 8, "k2": 3, "min_samples": 3}
COUNT, STEPS = 300, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    small_run.draw_images(path)
    return path


# Settings


@pytest.mark.parametrize(("eps", "gap"), [(0.6, -0.01), (0.6, 0.4), (0.3, 0.3)])
def test_radii_must_lie_in_range(eps: float, gap: float) -> None:
    with pytest.raises(UsageError, match=r"eps_gap = .*0\.02 is usual"):
        hybrid_memory.Config(eps=eps, eps_gap=gap)


def test_off_by_default() -> None:
    features = Features(image_id=np.arange(COUNT), feature=people(COUNT))
    labels = hybrid_memory.assign_labels(hybrid_memory.Config(), features, None)
    np.testing.assert_array_equal(labels.label, cluster(features).label)
    assert not labels.state


def test_presets_of_the_paper() -> None:
    """They differ from the preset without the self-paced part in nothing else."""
    presets = {n: p for n, p in hybrid_memory.PRESETS.items() if n.startswith("spcl_")}
    assert len(presets) == 8
    for name, preset in presets.items():
        plain = hybrid_memory.Config(steps=800 if name.endswith(("ms", "msmt17")) else 400)
        changed = [
            f.name
            for f in fields(plain)
            if getattr(plain, f.name) != getattr(preset.config, f.name)
        ]
        assert (changed, preset.config.eps_gap) == (["eps_gap"], 0.02)
        assert ("--source" in preset.about) == ("uda" in name)
        assert len(preset.published) == (0 if "personx" in name else 4)


# The label stage over rounds


def stage(path: Path, number: int, ranks: int) -> Labels:
    """Round ``number`` with other features every time, from the parts of ``ranks``."""
    image_id = np.arange(COUNT)
    feature = people(COUNT, seed=number)
    columns = [image_id, [f"{i}.jpg" for i in image_id], ["train"] * COUNT, *[[None] * COUNT] * 3]
    labels, _ = label_stage(
        [{"target": (image_id[r::ranks], feature[r::ranks])} for r in range(ranks)],
        run=RunSpec(
            method="hybrid_memory",
            job=TrainJob(method=hybrid_memory.Config(eps=0.55, eps_gap=0.1)),
            folder=str(path),
            stores={},
            threads=1,
            engine=Engine(),
            tasks=InProcess(),
        ),
        images={"target": pa.table(columns, schema=IMAGES)},
        number=number,
    )
    return labels


def test_the_first_round_fixes_the_threshold(tmp_path: Path) -> None:
    """Every round reads it from the LABELS of the one before, so that a restart needs nothing else."""
    one = [stage(tmp_path / "one", number, ranks=1) for number in range(3)]
    two = [stage(tmp_path / "two", number, ranks=2) for number in range(3)]
    again = stage(tmp_path / "two", 2, ranks=1)
    assert len({labels.state[THRESHOLD] for labels in [*one, *two, again]}) == 1
    for a, b in [*zip(one, two, strict=True), (again, one[2])]:
        np.testing.assert_array_equal(a.label, b.label)
    path = labels_path(str(tmp_path / "two"), 2)
    assert Labels.from_table(read_table(path, LABELS)).state == one[0].state
    alone = stage(tmp_path / "alone", 0, ranks=1)
    assert alone.state == one[0].state


# Training


class Run:
    """Rounds of the hybrid memory; each clusters the memory that the last one left."""

    def __init__(self, folder: Path, precision: str) -> None:
        self.folder = folder
        self.config = small_run.settings("hybrid_memory", precision, **SELF_PACED)
        self.learner, self.start = small_run.start_round("hybrid_memory", self.config, uda=False)
        self.objective: Any = self.learner.objective
        method = contract.load("hybrid_memory")
        self.optimizer = contract.optimizer(
            method, self.config, self.learner.embedder, self.objective
        )
        self.labels: Labels | None = None

    def round(self, number: int) -> list[dict[str, float]]:
        """Losses of a round."""
        start = self._start(number)
        self.objective.begin_round(start)
        streams = small_run.streams("hybrid_memory", self.config, start)
        batches = small_run.loader(self.folder, self.config, uda=False)
        history = train_round(
            self.learner,
            batches.round(start, streams, STEPS),
            self.optimizer,
            progress=(number / 2, (number + 1) / 2),
            num_steps=STEPS,
        )
        losses = reduce_terms([terms for terms, _ in history], 0)
        check_equal_on_ranks(list(self.objective.buffers()), "the memory")
        return losses

    def _start(self, number: int) -> Round:
        target = self.start.target
        feature = self.objective.features() if number else _groups(target.extracted)
        rows = Features(image_id=target.image_id.numpy(), feature=feature.float().numpy())
        labels = hybrid_memory.assign_labels(self.config, rows, self.labels)
        self.labels = Labels.from_table(labels.table())
        domain = replace(target, label=torch.tensor(self.labels.label), feature=feature)
        return replace(self.start, number=number, target=domain)

    def modules(self) -> tuple[Any, ...]:
        return self.learner.embedder, self.objective, self.optimizer

    def result(self) -> dict[str, Any]:
        assert self.labels is not None
        return {
            "weights": self.learner.embedder.state_dict(),
            "memory": self.objective.memory_RD,
            "label": torch.tensor(self.labels.label),
            "state": self.labels.state,
            "unreliable": self.labels.metrics["unreliable"],
        }


def _groups(noise: torch.Tensor) -> torch.Tensor:
    """Unit rows of four groups that differ in how tight they are."""
    group = torch.arange(len(noise)) % 4
    centre = F.one_hot(group, noise.shape[1]).to(noise)
    return F.normalize(centre + (1 + 0.5 * group[:, None]) * noise, dim=1)


def train(folder: Path) -> list[dict[str, Any]]:
    run = Run(folder, "fp64")
    return [{"losses": run.round(number), **run.result()} for number in range(2)]


def test_resume_between_rounds_is_bit_equal(folder: Path, tmp_path: Path) -> None:
    whole = Run(folder, "fp32")
    whole.round(0)
    first = whole.result()
    assert first["unreliable"] > 0
    torch.save([module.state_dict() for module in whole.modules()], tmp_path / "state.pt")
    resumed = Run(folder, "fp32")
    resumed.labels = whole.labels
    for module, state in zip(
        resumed.modules(), torch.load(tmp_path / "state.pt", weights_only=True), strict=True
    ):
        module.load_state_dict(state)
    assert resumed.round(1) == whole.round(1)
    assert resumed.result()["state"] == first["state"]
    torch.testing.assert_close(resumed.result(), whole.result(), atol=0, rtol=0)


@pytest.mark.ddp
def test_one_worker_equals_two(folder: Path, tmp_path: Path) -> None:
    (one,), (two, other) = (
        run_ranks(train, world, tmp_path / str(world), folder) for world in (1, 2)
    )
    for a, b, c in zip(one, two, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=0)
        assert torch.equal(a["label"], b["label"])
        assert torch.equal(b["memory"], c["memory"])
