"""Files that would run code when they are unpickled are refused, and no code of theirs runs."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.cli import main
from pipelines.nodes.runtime import make_token
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


PASSWORD = "a-secret/of-this-test"  # AWS makes such ones
URI = f"s3://key:{PASSWORD}@bucket/folder"
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


@pytest.mark.parametrize("flags", [["--data", URI], ["--data", "{set}", "--storage", URI]])
def test_a_password_in_a_uri_reaches_no_file(
    flags: list[str],
    small_set: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word.format(set=small_set) for word in flags]
    assert main(["train", "cluster_contrast", "--preset", "demo", *words]) == 2
    said = capsys.readouterr().err
    assert "a URI holds a key or a password" in said
    assert PASSWORD not in said
    assert not any(PASSWORD in p.read_text() for p in tmp_path.rglob("*") if p.is_file())


@pytest.mark.parametrize("told", [{}, {"RAY_AUTH_TOKEN": "a"}, {"RAY_AUTH_MODE": "disabled"}])
def test_a_token_is_made_for_its_owner_alone(
    told: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"} | told).items():
        monkeypatch.setenv(name, value)
    path = tmp_path / ".ray" / "auth_token"
    make_token()
    assert path.exists() == (not told)
    if not told:
        made = path.read_text()
        assert (len(made), path.stat().st_mode & 0o777) == (64, 0o600)
        make_token()
        assert path.read_text() == made
