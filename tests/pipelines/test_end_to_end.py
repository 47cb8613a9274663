"""The main job through the command line: train in this process, killed as well; every other verb on what it leaves."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.injection import NAME, outcome
from pipelines.cli import main
from reid_core.labels import Labels
from reid_core.tables import LABELS, feature_matrix, read_features, read_table

TINY = [
    "--method.steps", "4", "--method.batch-size", "16", "--method.instances", "4",
    "--method.min-samples", "2", "--method.k1", "8", "--method.k2", "3", "--method.bn-group", "8",
    "--rounds", "2", "--eval-every", "1", "--block", "32", "--cache", "",
]  # fmt: skip


LIMIT_S = 120


def train(data: str, storage: Path) -> list[str]:
    """The command of the run."""
    command = ["train", "cluster_contrast", "--local", "--preset", "demo", "--data", data]
    return [*command, "--storage", str(storage), "--name", NAME, *TINY]


@pytest.fixture(scope="module")
def run(small_set: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("runs")
    assert main(train(small_set, storage)) == 0
    return storage / NAME


def test_the_run_leaves_what_the_readme_says(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.json", "environment.json", "log.txt", "metrics.jsonl", "tensorboard", "labels",
        "checkpoints", "result.json", "last.safetensors", "best_label_free.safetensors",
        "best_on_test.safetensors",
    }  # fmt: skip
    result = json.loads((run / "result.json").read_text())
    assert [result[key]["round"] for key in ("first", "last")] == [0, 2]
    assert all(0 <= result["last"][key] <= 1 for key in ("mAP", "mINP", "rank1", "rank5", "rank10"))
    assert {path.name for path in (run / "checkpoints").glob("round-*")} == {
        "round-0001",
        "round-0002",
    }


def test_labels_hold_every_training_image_once(run: Path) -> None:
    for number in range(3):
        path = run / "labels" / f"round-{number:04d}.parquet"
        labels = Labels.from_table(read_table(path, LABELS))
        assert len(labels.image_id) == 48
        assert labels.metrics["clusters"] == labels.label.max() + 1
        assert {"path", "camid"} <= set(pq.read_schema(path).names)


def test_metrics_have_a_line_a_round_and_an_evaluation(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines if line["kind"] == "round"] == [0, 1]
    assert [line["round"] for line in lines if line["kind"] == "evaluation"] == [0, 1, 2]
    assert all(np.isfinite(line["loss_target"]) for line in lines if line["kind"] == "round")
    assert [line["round"] for line in lines if line["kind"] == "quality"] == [0, 1, 2]


def test_the_same_command_ends_at_once_with_the_same_result(run: Path, small_set: str) -> None:
    before = (run / "result.json").read_text()
    assert main(train(small_set, run.parent)) == 0
    assert (run / "result.json").read_text() == before


@pytest.mark.slow
def test_killed_it_goes_on_with_the_same_command_and_changes_no_bit(
    run: Path, small_set: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")  # of what is logged at all
    words = [sys.executable, "-m", "pipelines", *train(small_set, tmp_path)]
    with subprocess.Popen(words) as process:
        end = time.monotonic() + LIMIT_S
        while not (tmp_path / NAME / "checkpoints" / "round-0001" / "whole").exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.001)
        process.kill()
    assert not (tmp_path / NAME / "result.json").exists()
    assert main(train(small_set, tmp_path)) == 0
    assert "resumed after round" in (tmp_path / NAME / "log.txt").read_text()
    assert outcome(tmp_path) == outcome(run.parent)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_extract_cluster_and_evaluate_agree_with_the_run(
    run: Path, small_set: str, tmp_path: Path
) -> None:
    features, labels = tmp_path / "train.parquet", tmp_path / "labels.parquet"
    weights = str(run / "last.safetensors")
    command = ["extract", "--data", small_set, "--weights", weights, "--cache", "", "--block", "32"]
    assert main([*command, "--out", str(features)]) == 0
    table = read_features(features)
    assert len(table) == 48
    np.testing.assert_allclose(np.linalg.norm(feature_matrix(table), axis=1), 1, atol=1e-5)

    settings = ["--min-samples", "2", "--k1", "8", "--k2", "3", "--eps", "0.5"]
    assert main(["cluster", "--features", str(features), "--out", str(labels), *settings]) == 0
    own = Labels.from_table(read_table(labels, LABELS))
    of_run = Labels.from_table(read_table(run / "labels" / "round-0002.parquet", LABELS))
    np.testing.assert_array_equal(own.label, of_run.label)

    out = tmp_path / "result.json"
    assert main(["evaluate", "--run", str(run), "--out", str(out), "--cache", ""]) == 0
    last = json.loads((run / "result.json").read_text())["last"]
    assert json.loads(out.read_text()) == pytest.approx(last, abs=1e-6)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_evaluate_tables_without_ids_gives_null_and_succeeds(
    run: Path, small_set: str, tmp_path: Path
) -> None:
    features, out = tmp_path / "all.parquet", tmp_path / "result.json"
    command = ["extract", "--data", small_set, "--layout", "folder", "--split", "all"]
    command += ["--cache", ""]
    assert main([*command, "--weights", str(run / "last.safetensors"), "--out", str(features)]) == 0
    tables = ["--query", str(features), "--gallery", str(features)]
    assert main(["evaluate", *tables, "--out", str(out)]) == 0
    assert json.loads(out.read_text())["mAP"] is None
