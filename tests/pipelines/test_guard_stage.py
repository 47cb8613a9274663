"""The guard in the label stage: what is written, what every rank gets, what ends the run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.run.job import RunSpec, TrainJob, check
from pipelines.run.stages import label_stage, labels_path
from pipelines.train import parse
from reid_core import method as contract
from reid_core.errors import UsageError
from reid_core.labelling.engine import Engine
from reid_core.labelling.guard import Guard
from reid_core.labelling.tasks import InProcess
from reid_core.labels import Labels
from reid_core.tables import IMAGES, LABELS, read_table

GROUPS, MEMBERS = 4, 10
COUNT = GROUPS * MEMBERS


def rows(noise: float) -> np.ndarray:
    """Groups in orthogonal directions, unit rows (N, 32)."""
    rng = np.random.default_rng(0)
    feature = np.repeat(np.eye(GROUPS, 32), MEMBERS, axis=0) + rng.normal(0, noise, (COUNT, 32))
    return (feature / np.linalg.norm(feature, axis=1, keepdims=True)).astype(np.float32)


def stage(
    folder: Path, number: int, feature: np.ndarray, guard: Guard, shards: int = 1, **changes: float
) -> Labels:
    """Round ``number`` of hybrid_memory, from two ranks' parts; its labels."""
    image_id = np.arange(COUNT)
    columns = [image_id, [f"{i}.jpg" for i in image_id], ["train"] * COUNT, *[[None] * COUNT] * 3]
    labels, feature = label_stage(
        [{"target": (image_id[part::2], feature[part::2])} for part in (0, 1)],
        run=RunSpec(
            method="hybrid_memory",
            job=TrainJob(
                method=contract.load("hybrid_memory").Config(k1=8, k2=3, **changes), guard=guard
            ),
            folder=str(folder),
            stores={},
            threads=1,
            engine=Engine(shards=shards),
            tasks=InProcess(),
        ),
        images={"target": pa.table(columns, schema=IMAGES)},
        number=number,
    )
    assert (set(feature) == {"target"}) == (
        number == 0
    )  # rows come back where they fill the memory
    return labels


def written(folder: Path, number: int) -> Labels:
    return Labels.from_table(read_table(labels_path(str(folder), number), LABELS))


def test_sound_labels_pass(tmp_path: Path) -> None:
    labels = stage(tmp_path, 0, rows(0.01), Guard(), eps=0.5)
    assert labels.label[:, 0].tolist() == np.repeat(range(GROUPS), MEMBERS).tolist()
    assert (labels.metrics["guard"], labels.metrics["eps"]) == (0, 0.5)
    in_blocks = stage(tmp_path, 0, rows(0.01), Guard(), shards=3, eps=0.5)
    np.testing.assert_array_equal(in_blocks.label, labels.label)


def test_labels_of_the_round_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(policy="reuse-last")
    first = stage(tmp_path, 0, rows(0.01), guard, eps=0.5)
    again = stage(tmp_path, 1, rows(0.01), guard, eps=0.5, min_samples=50)
    np.testing.assert_array_equal(again.label, first.label)
    np.testing.assert_array_equal(written(tmp_path, 1).label, first.label)
    assert (again.metrics["guard"], again.metrics["clusters"]) == (1, GROUPS)
    assert again.metrics["label_free"] == 0 < first.metrics["label_free"]
    assert "round 1: no clusters" in caplog.text
    third = stage(tmp_path, 2, rows(0.01), guard, eps=0.5)
    assert third.metrics["guard"] == 0


def test_no_labels_to_reuse(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no earlier labels"):
        stage(tmp_path, 0, rows(0.01), Guard(policy="reuse-last"), min_samples=50)
    assert not list(tmp_path.iterdir())


def test_a_wider_eps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"no clusters.*raise --method\.eps"):
        stage(tmp_path, 0, rows(0.3), Guard(policy="stop"), eps=0.2)
    labels = stage(tmp_path, 0, rows(0.3), Guard(policy="widen-eps"), eps=0.2)
    assert labels.metrics["guard"] == 1
    assert labels.metrics["clusters"] > 0
    used = labels.metrics["eps"]
    assert f"clustering again with eps = {used:g}" in caplog.text
    plain = stage(tmp_path, 0, rows(0.3), Guard(), eps=used)
    np.testing.assert_array_equal(labels.label, plain.label)


@pytest.mark.parametrize(("policy", "stops"), [("warn", False), ("stop", True)])
def test_one_large_cluster(tmp_path: Path, policy: Any, stops: bool) -> None:
    feature = np.repeat(rows(0.01)[:1], COUNT, axis=0)
    if stops:
        with pytest.raises(ValueError, match=r"one cluster holds 100\.0% of the images; lower"):
            stage(tmp_path, 0, feature, Guard(policy=policy))
    else:
        assert stage(tmp_path, 0, feature, Guard(policy=policy)).metrics["guard"] == 2


def test_flags() -> None:
    flags = ["--guard.policy", "reuse-last", "--guard.outliers", "0.9"]
    _, job = parse(["cluster_contrast", "--preset", "demo", *flags])
    assert job
    assert job.guard == Guard(policy="reuse-last", outliers=0.9)
    assert check(job).guard == job.guard


def test_a_method_without_eps_cannot_widen_it() -> None:
    @dataclass(frozen=True)
    class Config:
        batch_size: int = 8
        bn_group: int = 8

    with pytest.raises(UsageError, match="has no eps"):
        check(TrainJob(method=Config(), guard=Guard(policy="widen-eps")))
    check(TrainJob(method=Config(), guard=Guard(policy="reuse-last")))
