"""Files that would run code when they are unpickled are refused, and no code of theirs runs."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.cli import main
from reid_core.checkpoint import load_state
from reid_core.models.embedder import build_embedder, save_embedder
from reid_core.presets import DEMO_IMAGES, SMALL_MODEL


class Payload:
    """Makes a folder when it is unpickled by a loader that trusts its input."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def plain(path: Path, payload: Payload) -> None:
    path.write_bytes(pickle.dumps(payload))


def zipped(path: Path, payload: Payload) -> None:
    torch.save({"parts": payload, "rng": torch.get_rng_state(), "extra": {}}, path)


WRITERS = pytest.mark.parametrize("write", [plain, zipped])


@WRITERS
def test_the_payload_is_one(write: Any, tmp_path: Path) -> None:
    write(tmp_path / "file", Payload(tmp_path / "mark"))
    if write is plain:
        pickle.loads((tmp_path / "file").read_bytes())
    else:
        torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "mark").exists()


@WRITERS
def test_a_checkpoint(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    write(path, Payload(tmp_path / "mark"))
    with pytest.raises(ValueError, match=r"state.pt: not a checkpoint of this run"):
        load_state(path, {})
    assert not (tmp_path / "mark").exists()


@WRITERS
@pytest.mark.parametrize("name", ["weights.pth", "weights.pt"])
def test_weights_to_start_from(
    write: Any, name: str, small_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    write(path, Payload(tmp_path / "mark"))
    command = ["train", "cluster_contrast", "--preset", "demo", "--data", small_set]
    command += ["--storage", str(tmp_path / "runs"), "--method.model.weights", str(path)]
    assert main(command) == 1
    assert f"{path}: refused, it holds more than tensors" in capsys.readouterr().err
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "runs").exists()


@WRITERS
@pytest.mark.parametrize(
    "command", [["extract", "--weights"], ["evaluate", "--checkpoint"]], ids=lambda c: c[0]
)
def test_an_embedder_of_a_run(
    write: Any,
    command: list[str],
    small_set: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "last.safetensors"
    write(path, Payload(tmp_path / "mark"))
    assert main([*command, str(path), "--data", small_set, "--out", str(tmp_path / "out")]) == 1
    assert f"{path}: no .safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "out").exists()


def test_a_pickle_behind_a_true_header(
    small_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "last.safetensors"
    embedder = build_embedder(SMALL_MODEL, bn_group=1)
    save_embedder(embedder, SMALL_MODEL, DEMO_IMAGES, str(path))
    whole = path.read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little")
    path.write_bytes(whole[:size] + pickle.dumps(Payload(tmp_path / "mark")))
    assert main(["extract", "--weights", str(path), "--data", small_set]) == 1
    assert f"{path}: no readable weights" in capsys.readouterr().err
    assert not (tmp_path / "mark").exists()
