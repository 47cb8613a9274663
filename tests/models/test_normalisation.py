import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid_core.distributed import data_parallel, gather_rows, rank, world_size
from reid_core.models.normalisation import (
    DomainBatchNorm,
    GroupBatchNorm,
    convert,
    move_running_statistics,
)
from tests.ranks import run_ranks
from tests.reference.normalisation import group_norm_reference, running_reference

SHAPES = [(8, 3, 4, 2), (8, 3)]


def rows(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 2 * values + 1


def norm(shape: tuple[int, ...]) -> nn.BatchNorm1d | nn.BatchNorm2d:
    layer = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(shape[1]).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 2.0, 0.5]))
        layer.bias.copy_(torch.tensor([0.0, -1.0, 3.0]))
    return layer


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", [2, 4, 8])
def test_equals_the_formula(shape: tuple[int, ...], group: int) -> None:
    x, layer = rows(*shape), GroupBatchNorm(norm(shape), group)
    want = group_norm_reference(x, layer.weight, layer.bias, group)
    assert torch.allclose(layer(x), want, atol=1e-12)
    move_running_statistics(layer)
    mean, var = running_reference(x, group)
    assert torch.allclose(layer.running_mean, mean, atol=1e-12)
    assert torch.allclose(layer.running_var, var, atol=1e-12)
    assert layer.num_batches_tracked == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_one_group_is_batchnorm_itself(shape: tuple[int, ...]) -> None:
    plain = norm(shape)
    grouped = GroupBatchNorm(copy.deepcopy(plain), 8)
    for seed in range(3):
        x, y = rows(*shape, seed=seed).requires_grad_(), rows(*shape, seed=seed).requires_grad_()
        want, found = plain(x), grouped(y)
        move_running_statistics(grouped)
        assert torch.equal(found, want)
        want.square().sum().backward()
        found.square().sum().backward()
        assert torch.equal(x.grad, y.grad)
    assert torch.equal(plain.weight.grad, grouped.weight.grad)
    state = grouped.state_dict()
    assert list(state) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.allclose(state[name], value, atol=1e-12)
    assert torch.allclose(grouped.eval()(x), plain.eval()(x), atol=1e-12)


def test_two_groups_are_two_batchnorms() -> None:
    x, plain = rows(8, 3, 4, 2), norm((8, 3, 4, 2))
    grouped = GroupBatchNorm(copy.deepcopy(plain), 4)
    assert torch.equal(grouped(x), torch.cat([plain(x[:4]), plain(x[4:])]))


def test_a_group_that_does_not_divide_is_refused() -> None:
    layer = GroupBatchNorm(norm((8, 3)), 3)
    with pytest.raises(ValueError, match=r"8 images .* no multiple of bn_group = 3"):
        layer(rows(8, 3))
    layer.eval()(rows(8, 3))


def test_running_statistics_wait_for_the_end_of_the_pass_and_hold_no_graph() -> None:
    layer = GroupBatchNorm(norm((8, 3)), 4)
    before = copy.deepcopy(layer.state_dict())
    layer(rows(8, 3).requires_grad_())
    assert layer.pending is not None
    assert not layer.pending.requires_grad
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    move_running_statistics(layer)
    assert layer.pending is None
    moved = layer.running_mean.clone()
    move_running_statistics(layer)  # nothing is pending: nothing moves
    assert torch.equal(layer.running_mean, moved)


def test_domains_have_their_own_layers() -> None:
    x, plain = rows(8, 3), norm((8, 3))
    layer = DomainBatchNorm(copy.deepcopy(plain), 2)
    for name, value in plain.state_dict().items():
        for copied in (layer.target, layer.source):
            assert torch.equal(copied.state_dict()[name], value)
    assert layer.source.weight is not layer.target.weight
    source, target = (GroupBatchNorm(copy.deepcopy(plain), 2) for _ in range(2))
    want = torch.cat([source(x[:4]), target(x[4:])])
    assert torch.equal(layer(x), want)
    for one in (layer, source, target):
        move_running_statistics(one)
    assert torch.equal(layer.source.running_mean, source.running_mean)
    assert torch.equal(layer.target.running_var, target.running_var)
    assert torch.equal(layer.eval()(x), target.eval()(x))


def test_domains_need_equal_halves() -> None:
    layer = DomainBatchNorm(norm((8, 3)), 2)
    with pytest.raises(ValueError, match="7 images"):
        layer(rows(7, 3))
    with pytest.raises(ValueError, match="bn_group"):
        layer(rows(6, 3))


@pytest.mark.parametrize("domains", [1, 2])
def test_convert_reaches_every_layer_and_keeps_what_is_frozen(domains: int) -> None:
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Flatten(), nn.BatchNorm1d(4)
    )
    network[2].bias.requires_grad_(False)
    weight = network[0][1].weight
    converted = convert(network, group=2, domains=domains)
    assert converted is network
    kinds = [type(module) for module in network.modules()]
    assert nn.BatchNorm1d not in kinds
    assert nn.BatchNorm2d not in kinds
    assert kinds.count(GroupBatchNorm) == 2 * domains
    assert any(parameter is weight for parameter in network.parameters())
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert frozen == (["2.bias"] if domains == 1 else ["2.target.bias", "2.source.bias"])


class Small(nn.Module):
    """Two layers whose running statistics move at the end of a pass, as an embedder's do."""

    def __init__(self, domains: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.BatchNorm1d(4 * 4 * 2),
        )
        convert(self.layers, group=2, domains=domains)

    def forward(self, x: Tensor) -> Tensor:
        out = F.normalize(self.layers(x))
        if self.training:
            move_running_statistics(self)
        return out


def share(x: Tensor) -> Tensor:
    """This rank's rows of a global batch of one domain."""
    return x.chunk(world_size())[rank()]


def train_two_steps(domains: int) -> dict[str, Tensor]:
    """State, gradients and outputs, by name; the same on every rank and any number of ranks."""
    torch.manual_seed(0)
    network = Small(domains).double()
    wrapped = data_parallel(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    found = {}
    for step in range(2):
        parts = [rows(8, 3, 6, 4, seed=10 * step + domain) for domain in range(domains)]
        goals = [rows(8, 32, seed=10 * step + 5 + domain) for domain in range(domains)]
        x, goal = (torch.cat([share(part) for part in kind]) for kind in (parts, goals))
        out = wrapped(x)
        optimizer.zero_grad()
        (out - goal).square().mean().backward()
        found |= {f"{step}.grad.{n}": p.grad.clone() for n, p in network.named_parameters()}
        found |= {f"{step}.{n}": v.clone() for n, v in network.state_dict().items()}
        for domain, part in enumerate(out.chunk(domains)):
            found[f"{step}.out.{domain}"] = gather_rows(part)
        optimizer.step()
    return found


@pytest.mark.ddp
@pytest.mark.parametrize("domains", [1, 2])
def test_two_ranks_equal_one(domains: int, tmp_path: Path) -> None:
    (alone,) = run_ranks(train_two_steps, 1, tmp_path, domains)
    for found in run_ranks(train_two_steps, 2, tmp_path / "two", domains):
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            assert torch.allclose(found[name].double(), value.double(), rtol=0, atol=1e-8), name
