import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from reid_core.models.embedder import Embedder
from reid_core.models.normalisation import convert
from reid_core.models.osnet import OmniScaleBlock, osnet_x1_0
from reid_core.models.pooling import Average
from reid_core.models.weights import load_file


def images(count: int = 2, height: int = 64, width: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_map_is_16_by_8_for_a_person() -> None:
    with torch.device("meta"):
        assert osnet_x1_0()(torch.empty(2, 3, 256, 128)).shape == (2, 512, 16, 8)


def test_size_and_cost_are_the_published_ones() -> None:
    """arXiv 1905.00953, Table 1: 2.2 million parameters, 978.9 million multiply-adds, with the layer after pooling."""
    with torch.device("meta"):
        trunk, fc = osnet_x1_0().eval(), nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512))
        with FlopCounterMode(display=False) as counter:
            fc.eval()(trunk(torch.empty(1, 3, 256, 128)).mean((2, 3)))
    size = sum(p.numel() for p in (*trunk.parameters(), *fc.parameters()))
    assert size == 2_169_508
    assert counter.get_total_flops() / 2 == pytest.approx(978.9e6, abs=0.05e6)


LIGHT = {"conv1.weight", "conv2.weight", "bn.weight", "bn.bias"}
UNIT = {"conv.weight", "bn.weight", "bn.bias"}


def under(module: nn.Module, prefix: str) -> set[str]:
    return {n.removeprefix(prefix) for n, _ in module.named_parameters() if n.startswith(prefix)}


def test_names_are_those_of_the_public_weights() -> None:
    trunk = osnet_x1_0()
    assert [name for name, _ in trunk.named_children()] == [
        "conv1", "maxpool", "conv2", "conv3", "conv4", "conv5",
    ]  # fmt: skip
    for name in (
        "conv1.",
        "conv5.",
        "conv2.2.0.",
        "conv3.2.0.",
        "conv2.0.conv1.",
        "conv4.1.conv3.",
    ):
        assert under(trunk, name) == UNIT
    for name in ("conv2a.", "conv2b.0.", "conv2b.1.", "conv2c.2.", "conv2d.3."):
        assert under(trunk, f"conv3.1.{name}") == LIGHT
    gate = {f"{layer}.{part}" for layer in ("fc1", "fc2") for part in ("weight", "bias")}
    assert under(trunk, "conv4.0.gate.") == gate
    for stage in ("conv2", "conv3", "conv4"):
        assert under(trunk, f"{stage}.0.downsample.") == UNIT
        assert not under(trunk, f"{stage}.1.downsample.")
    assert trunk.get_parameter("conv2.0.conv2a.conv2.weight").shape == (64, 1, 3, 3)
    assert trunk.get_parameter("conv3.0.gate.fc1.weight").shape == (6, 96, 1, 1)
    assert len(trunk.state_dict()) == 558


def test_a_file_fits_and_the_layers_after_pooling_are_left_out(tmp_path) -> None:
    state = {n: torch.rand_like(v.float()).to(v) for n, v in osnet_x1_0().state_dict().items()}
    left_out = {f"fc.0.{n}": v for n, v in nn.Linear(512, 512).state_dict().items()}
    left_out |= {f"classifier.{n}": v for n, v in nn.Linear(512, 1000).state_dict().items()}
    torch.save(state | left_out, tmp_path / "osnet_x1_0_imagenet.pth")
    embedder = convert(Embedder(osnet_x1_0(), Average(), 512), group=2)
    load_file(embedder, str(tmp_path / "osnet_x1_0_imagenet.pth"))
    loaded = embedder.get_submodule("trunk").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_a_block_is_its_equation() -> None:
    """y = relu(conv3(sum over t of gate(F^t(narrow))) + x)."""
    block = OmniScaleBlock(64, 64).eval()
    x = torch.rand(2, 64, 8, 4)
    narrow = block.conv1(x)
    total = torch.zeros_like(narrow)
    for name, depth in (("conv2a", 1), ("conv2b", 2), ("conv2c", 3), ("conv2d", 4)):
        stream = block.get_submodule(name)
        layers = [stream] if depth == 1 else list(stream.children())
        assert len(layers) == depth
        out = narrow
        for layer in layers:
            out = layer(out)
        mean = out.mean((2, 3), keepdim=True)
        total = total + out * torch.sigmoid(block.gate.fc2(torch.relu(block.gate.fc1(mean))))
    torch.testing.assert_close(block(x), torch.relu(block.conv3(total) + x))


def test_every_parameter_learns() -> None:
    trunk = osnet_x1_0()
    trunk(images()).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trunk.parameters())
