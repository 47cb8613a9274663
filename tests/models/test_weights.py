import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision

from reid_core.errors import UsageError
from reid_core.models.embedder import build_embedder
from reid_core.models.trunks import TRUNKS
from reid_core.settings import ModelConfig

TINY = ModelConfig(trunk="tiny", weights="random")


def build(weights: Path | str, *, trunk: str = "tiny", domains: int = 1, seed: int = 1):
    config = ModelConfig(trunk=trunk, weights=str(weights))
    return build_embedder(config, bn_group=4, domains=domains, seed=seed)


def filled(seed: int = 0, domains: int = 1) -> dict[str, torch.Tensor]:
    """A whole state dict with other values than any fresh network."""
    state = build_embedder(TINY, bn_group=4, domains=domains).state_dict()
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(value.shape, generator=draw) if value.is_floating_point() else value
        for name, value in state.items()
    }


def test_a_torchvision_file_fits_and_its_classifier_is_left_out(tmp_path: Path) -> None:
    net = torchvision.models.resnet18()
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    trunk = build(tmp_path / "resnet18.pth", trunk="resnet18").trunk.state_dict()
    for name, value in net.state_dict().items():
        assert name.startswith("fc.") or torch.equal(trunk[name], value)


def test_imagenet_weights_come_from_the_cache_of_torch_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        UsageError, match=r"resnet18-f37072fd\.pth .*checkpoints.*weights FILE.*random"
    ):
        build("imagenet", trunk="resnet18")
    net = torchvision.models.resnet18()
    (tmp_path / "checkpoints").mkdir()
    torch.save(net.state_dict(), tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    assert torch.equal(build("imagenet", trunk="resnet18").trunk.conv1.weight, net.conv1.weight)


def test_the_names_of_torchvisions_files_are_todays() -> None:
    weights = [m for m in torchvision.models.list_models() if m in TRUNKS]
    assert len(weights) == 5
    for name in weights:
        url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
        assert url.endswith(f"/{TRUNKS[name].file}")


def test_there_is_no_imagenet_file_of_the_tiny_trunk() -> None:
    with pytest.raises(UsageError, match=r"tiny.*random"):
        build("imagenet")


@pytest.mark.parametrize("kind", ["pth", "pt", "safetensors"])
@pytest.mark.parametrize("part", ["embedder", "trunk"])
def test_round_trip(tmp_path: Path, kind: str, part: str) -> None:
    state, path = filled(), tmp_path / f"weights.{kind}"
    if part == "trunk":
        state = {n.removeprefix("trunk."): v for n, v in state.items() if n.startswith("trunk.")}
    (safetensors.torch.save_file if kind == "safetensors" else torch.save)(state, path)
    embedder = build(path if part == "embedder" else path.as_uri())
    found = (embedder if part == "embedder" else embedder.trunk).state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_one_domain_fills_both_copies(tmp_path: Path) -> None:
    state = filled()
    torch.save(state, tmp_path / "one.pt")
    found = build(tmp_path / "one.pt", domains=2).state_dict()
    for name, value in found.items():
        plain = name.replace(".target.", ".").replace(".source.", ".")
        assert torch.equal(value, state[plain])


@pytest.mark.parametrize("domains", [1, 2])
def test_a_file_of_two_domains(tmp_path: Path, domains: int) -> None:
    state = filled(domains=2)
    torch.save(state, tmp_path / "two.pt")
    found = build(tmp_path / "two.pt", domains=domains).state_dict()
    if domains == 2:
        assert all(torch.equal(found[name], state[name]) for name in state)
    else:
        assert torch.equal(found["neck.running_mean"], state["neck.target.running_mean"])


def test_old_files_without_counters_fit(tmp_path: Path) -> None:
    state = {n: v for n, v in filled().items() if not n.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pt")
    assert torch.equal(build(tmp_path / "old.pt").neck.weight, state["neck.weight"])


def test_the_message_lists_what_differs(tmp_path: Path) -> None:
    state = filled()
    first, *_ = (name for name in state if name.startswith("trunk."))
    state[first] = state[first][..., :1]
    del state["neck.weight"]
    state |= {f"head.{i}": torch.zeros(1) for i in range(5)}
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="another network") as caught:
        build(tmp_path / "other.pt")
    message = str(caught.value)
    assert "other.pt" in message
    assert "1 (neck.weight) missing" in message
    assert "5 (head.0, head.1, head.2, ...) unexpected" in message
    assert f"1 ({first} " in message


def test_another_trunk_is_refused(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match="another network"):
        build(tmp_path / "resnet18.pth", trunk="resnet34")


class Attack:
    """Unpickling this would make a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("wrap", ["zip", "pickle"])
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, wrap: str) -> None:
    path, target = tmp_path / "attack.pth", tmp_path / "taken"
    if wrap == "zip":
        torch.save({"conv1.weight": Attack(target)}, path)
    else:
        path.write_bytes(pickle.dumps({"conv1.weight": Attack(target)}, protocol=2))
    with pytest.raises(ValueError, match=r"attack\.pth: refused.*run code"):
        build(path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.pth", b"PK\x03\x04 cut"), ("x.pth", b""), ("x.safetensors", b"\xff" * 20)],
)
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        build(tmp_path / name)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3, "state_dict": {}}])
def test_something_else_than_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="not a state dict"):
        build(tmp_path / "x.pth")


def test_a_missing_file_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.pth: no such file"):
        build(tmp_path / "none.pth")


@pytest.mark.data
@pytest.mark.skipif(not os.environ.get("REID_TEST_DATA"), reason="REID_TEST_DATA names no folder")
def test_the_squeezenet_file_fits() -> None:
    path = Path(os.environ["REID_TEST_DATA"]) / "squeezenet1_1_features.pth"
    embedder = build(path, trunk="squeezenet1_1")
    state = torch.load(path, weights_only=True)
    assert all(torch.equal(embedder.trunk.state_dict()[name], v) for name, v in state.items())
    rows = embedder.eval()(100 * torch.randn(2, 3, 64, 64))
    assert torch.allclose(rows.norm(dim=1), torch.ones(2))
