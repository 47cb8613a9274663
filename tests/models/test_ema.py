"""The teacher: ramp, reset, running statistics."""

import pytest
import torch
from torch import nn

from reid_core.models.ema import ema_weight, follow, teacher_of
from reid_core.models.embedder import build_embedder
from reid_core.settings import ModelConfig
from tests.reference import hdcpd as reference

MODEL = ModelConfig(trunk="tiny", pooling="gem", weights="random", precision="fp64")


def student(domains: int = 1) -> nn.Module:
    return build_embedder(MODEL, bn_group=4, domains=domains)


def images(seed: int) -> torch.Tensor:
    return torch.randn(8, 3, 24, 16, generator=torch.Generator().manual_seed(seed))


def drift(network: nn.Module) -> None:
    """Another network with other statistics, as a training step leaves it."""
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.01)
        network(images(0))


@pytest.mark.parametrize(
    ("step", "want"),
    [(0, 0.999), (48, 0.999), (49, 0.0), (50, 1 / 2), (51, 2 / 3), (58, 0.9), (1048, 0.999), (9999, 0.999)],
)  # fmt: skip
def test_released_ramp_by_hand(step: int, want: float) -> None:
    assert ema_weight(step, ema=0.999, ramp="released", reset=49) == pytest.approx(want, abs=1e-15)


def test_ramp_of_the_cluster_variant_starts_at_99() -> None:
    assert [ema_weight(t, ema=0.999, ramp="released", reset=99) for t in (98, 99, 100)] == [
        0.999,
        0.0,
        0.5,
    ]


@pytest.mark.parametrize("ramp", ["none", "mean_teacher", "released"])
def test_ramps_equal_the_twin(ramp) -> None:
    got = [ema_weight(t, ema=0.9, ramp=ramp, reset=5) for t in range(40)]
    assert got == reference.ema_weights(40, 0.9, ramp, 5)


def test_teacher_is_an_untrained_copy() -> None:
    network = student()
    teacher = teacher_of(network)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert any(p.requires_grad for p in network.parameters())
    for own, other in zip(
        teacher.state_dict().values(), network.state_dict().values(), strict=True
    ):
        assert torch.equal(own, other)
        assert own.data_ptr() != other.data_ptr()


@pytest.mark.parametrize("domains", [1, 2])
def test_reset_makes_it_the_student(domains: int) -> None:
    network = student(domains).train()
    teacher = teacher_of(network).train()
    drift(network)
    follow(teacher, network, 0.0, statistics=True)
    assert torch.equal(teacher.eval()(images(1)), network.eval()(images(1)))


def test_moves_by_the_weight_of_the_old_value() -> None:
    network = student().train()
    teacher = teacher_of(network)
    old = {name: value.clone() for name, value in teacher.state_dict().items()}
    drift(network)
    follow(teacher, network, 0.9, statistics=True)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            want = 0.9 * old[name] + 0.1 * value
            torch.testing.assert_close(teacher.state_dict()[name], want, atol=1e-12, rtol=0)


def test_statistics_may_stay_the_teachers_own() -> None:
    network = student().train()
    teacher = teacher_of(network, own_statistics=True).train()
    drift(network)
    before = [x.clone() for x in teacher.buffers()]
    follow(teacher, network, 0.0, statistics=False)
    assert all(map(torch.equal, teacher.buffers(), before))
    assert all(map(torch.equal, teacher.parameters(), network.parameters()))


@pytest.mark.parametrize("own", [False, True])
def test_own_batches_move_the_statistics_only_where_asked(own: bool) -> None:
    network = student().train()
    teacher = teacher_of(network, own_statistics=own).train()
    before = {n: x.clone() for n, x in teacher.state_dict().items() if "running" in n}
    embedding = teacher(images(2))
    assert torch.equal(embedding, network(images(2)))  # by the statistics of the batch
    moved = [not torch.equal(teacher.state_dict()[n], x) for n, x in before.items()]
    assert all(moved) if own else not any(moved)
