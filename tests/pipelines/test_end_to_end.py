"""The main job through the command line on a local Ray: train, and every other verb on what it leaves."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from reid_core.labels import Labels
from reid_core.tables import LABELS, feature_matrix, read_features, read_table

TINY = [
    "--method.steps", "4", "--method.batch-size", "16", "--method.instances", "4",
    "--method.min-samples", "2", "--method.k1", "8", "--method.k2", "3", "--method.bn-group", "8",
    "--rounds", "2", "--eval-every", "1", "--block", "32", "--cache", "",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(local_ray: None, small_set: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("runs")
    command = ["train", "cluster_contrast", "--preset", "demo", "--data", small_set]
    assert main([*command, "--storage", str(storage), "--name", "one", *TINY]) == 0
    return storage / "one"


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


@pytest.mark.ray
def test_the_same_command_ends_at_once_with_the_same_result(run: Path, small_set: str) -> None:
    before = (run / "result.json").read_text()
    command = ["train", "cluster_contrast", "--preset", "demo", "--data", small_set]
    assert main([*command, "--storage", str(run.parent), "--name", "one", *TINY]) == 0
    assert (run / "result.json").read_text() == before


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


def test_evaluate_tables_without_ids_gives_null_and_succeeds(
    run: Path, small_set: str, tmp_path: Path
) -> None:
    features, out = tmp_path / "all.parquet", tmp_path / "result.json"
    command = [
        "extract",
        "--data",
        small_set,
        "--layout",
        "folder",
        "--split",
        "all",
        "--cache",
        "",
    ]
    assert main([*command, "--weights", str(run / "last.safetensors"), "--out", str(features)]) == 0
    tables = ["--query", str(features), "--gallery", str(features)]
    assert main(["evaluate", *tables, "--out", str(out)]) == 0
    assert json.loads(out.read_text())["mAP"] is None
