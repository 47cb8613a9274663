"""Each wrong request gets one message that says what, where and what to do: 2 for wrong use, 1 for failure."""

import json
import resource
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.exceptions import WorkerCrashedError

from pipelines import train
from pipelines.cli import main
from pipelines.nodes.runtime import ray_session
from pipelines.run import trainer
from reid_core.models.embedder import build_embedder, save_embedder
from reid_core.settings import ImageConfig, ModelConfig
from reid_core.storage import write_bytes
from reid_core.tables import read_features

TRAIN = ["train", "cluster_contrast", "--preset", "demo"]


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], code: int, *words: str) -> None:
    assert main(argv) == code
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("reid: ")
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["fly"], ["reid: "]),
        (["train"], ["METHOD"]),
        (["train", "magic"], ["magic", "cluster_contrast"]),
        (["train", "cluster_contrast", "--preset", "mars"], ["mars", "market1501"]),
        (TRAIN, ["--data"]),
        ([*TRAIN, "--data", "/no/such/folder"], ["/no/such/folder"]),
        ([*TRAIN, "--data", ".", "--method.eps", "1.5"], ["eps", "0.4 to 0.7"]),
        ([*TRAIN, "--data", ".", "--workers", "3"], ["--workers 3"]),
        ([*TRAIN, "--data", "nosuch://x"], ["nosuch://x"]),
        ([*TRAIN, "--data", ".", "--method.model.weights", "/no/weights.pth"], ["/no/weights.pth"]),
        (["train", "moco", "--data", ".", "--source", "."], ["--source", "moco", "leave it out"]),
        (["cluster"], ["--features"]),
        (["cluster", "--features", "/no/f.parquet"], ["/no/f.parquet"]),
        (["evaluate", "--query", "/no/q.parquet", "--gallery", "/no/g.parquet"], ["/no/q.parquet"]),
        (["extract"], ["--data"]),
        (["evaluate"], ["--run"]),
        (["evaluate", "--run", "/no/such/run"], ["/no/such/run"]),
    ],
    ids=lambda value: " ".join(value)[-30:],
)
def test_wrong_use(capsys: pytest.CaptureFixture[str], argv: list[str], words: list[str]) -> None:
    assert main(argv) == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message


def test_empty_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    refused(capsys, [*TRAIN, "--data", str(tmp_path)], 1, str(tmp_path), "no images")


def test_manifest_without_its_column(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("file,pid\na.jpg,1\n")
    (tmp_path / "a.jpg").write_bytes(b"x")
    refused(capsys, [*TRAIN, "--data", str(tmp_path / "manifest.csv")], 1, "path")


def test_another_configuration_under_the_same_name(
    capsys: pytest.CaptureFixture[str], small_set: str, tmp_path: Path
) -> None:
    saved = {"identity": {"method_name": "cluster_contrast", "method": {"eps": 0.1}}}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text(json.dumps(saved))
    argv = [*TRAIN, "--data", small_set, "--storage", str(tmp_path), "--name", "a"]
    refused(capsys, argv, 2, "method.eps", "--name")


def test_more_workers_than_the_cluster_has(
    local_ray: None, capsys: pytest.CaptureFixture[str], small_set: str, tmp_path: Path
) -> None:
    argv = [*TRAIN, "--data", small_set, "--storage", str(tmp_path), "--workers", "64"]
    argv += ["--method.batch-size", "256", "--method.bn-group", "4", "--method.instances", "2"]
    refused(capsys, argv, 2, "--workers 64", "CPUs")


def test_gpu_where_there_is_none(
    local_ray: None, capsys: pytest.CaptureFixture[str], small_set: str, tmp_path: Path
) -> None:
    argv = [*TRAIN, "--data", small_set, "--storage", str(tmp_path), "--gpu"]
    refused(capsys, argv, 2, "GPU")


def test_checkpoint_of_another_architecture(
    capsys: pytest.CaptureFixture[str], small_set: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "other.safetensors")
    model = ModelConfig(trunk="tiny", weights="random")
    save_embedder(
        build_embedder(model, bn_group=1), ModelConfig(trunk="resnet18"), ImageConfig(), path
    )
    argv = ["evaluate", "--checkpoint", path, "--data", small_set]
    assert main(argv) == 1
    message = capsys.readouterr().err
    assert path in message
    assert "trunk" in message


def test_a_pickle_in_place_of_weights_is_not_executed(
    capsys: pytest.CaptureFixture[str], small_set: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    argv = ["evaluate", "--checkpoint", str(tmp_path / "bad.safetensors"), "--data", small_set]
    refused(capsys, argv, 1, "bad.safetensors")
    assert not Path("pwned").exists()


def test_features_of_another_kind(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "features.parquet"
    pq.write_table(pa.table({"image_id": [1, 2]}), path)
    refused(
        capsys, ["evaluate", "--query", str(path), "--gallery", str(path)], 1, str(path), "feature"
    )


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_bytes(path, b"old")

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))  # what a full disk does: writes fail
    try:
        with pytest.raises(OSError, match="too large"):
            write_bytes(path, b"new" * 1024)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_no_images_are_left_out(
    local_ray: None, caplog: pytest.LogCaptureFixture, small_set: str, tmp_path: Path
) -> None:
    good = next((Path(small_set) / "query").glob("*.jpg")).read_bytes()
    for name, content in {
        "a.jpg": good,
        "b.jpg": b"no image",
        "c.jpg": good[: len(good) // 2],
    }.items():
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / name).write_bytes(content)
    weights = str(tmp_path / "net.safetensors")
    model = ModelConfig(trunk="tiny", weights="random")
    images = ImageConfig(height=32, width=16)
    save_embedder(build_embedder(model, bn_group=1), model, images, weights)
    out = str(tmp_path / "features.parquet")
    command = ["extract", "--data", str(tmp_path / "set"), "--weights", weights, "--cache", ""]
    assert main([*command, "--out", out]) == 0
    assert read_features(out).column("path").to_pylist() == ["a.jpg"]
    assert "b.jpg" in caplog.text
    assert "c.jpg" in caplog.text


def test_nothing_but_files_that_are_no_images(
    local_ray: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jpg").write_bytes(b"no image")
    argv = [*TRAIN, "--data", str(tmp_path / "set"), "--storage", str(tmp_path), "--cache", ""]
    refused(capsys, argv, 1, "none of the target")


def test_ctrl_c_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted:
        def fit(self) -> None:
            raise SystemExit(0)  # as Ray Train's own handler does

    monkeypatch.setattr(train, "run", lambda *_: trainer.fit(Interrupted()))  # type: ignore[arg-type]
    assert main([*TRAIN, "--data", "."]) == 1
    assert "reid: stopped; the same command goes on" in capsys.readouterr().err


def test_what_ray_lost_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lose(*_: Any) -> None:
        with ray_session():
            raise WorkerCrashedError

    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr(train, "run", lose)
    refused(capsys, [*TRAIN, "--data", "."], 1, "Ray lost a task or an actor", "died unexpectedly")
