"""Two workers of real Ray Data and Ray Train give the labels, weights and figures of this process alone."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pipelines.cli import main
from reid_core.data.datasets import synthetic
from reid_core.labels import Labels
from reid_core.tables import LABELS, read_table
from tests.pipelines.test_end_to_end import TINY

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def source_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("source") / "set")
    return synthetic.draw(path, ids=8, cameras=3, images=3, seed=5)


@pytest.mark.parametrize(
    ("method", "uda"), [("cluster_contrast", False), ("hybrid_memory", True)], ids=["usl", "uda"]
)
def test_one_worker_equals_two(
    local_ray: None, small_set: str, source_set: str, tmp_path: Path, method: str, uda: bool
) -> None:
    command = ["train", method, "--preset", "demo", "--data", small_set, *TINY]
    command += ["--storage", str(tmp_path), "--method.model.precision", "fp64"]
    command += ["--source", source_set] if uda else []
    assert main([*command, "--name", "1", "--local"]) == 0
    in_tasks = ["--shards", "3"]  # of the labels
    assert main([*command, "--name", "2", "--workers", "2", *in_tasks]) == 0
    one, two = tmp_path / "1", tmp_path / "2"
    for number in range(3):
        name = f"labels/round-{number:04d}.parquet"
        a, b = (Labels.from_table(read_table(run / name, LABELS)) for run in (one, two))
        assert (a.label == b.label).all()
    weights = [safetensors.torch.load_file(run / "last.safetensors") for run in (one, two)]
    torch.testing.assert_close(weights[0], weights[1], atol=1e-8, rtol=0)
    first, second = (json.loads((run / "result.json").read_text()) for run in (one, two))
    assert first["last"] == pytest.approx(second["last"], abs=1e-6)
