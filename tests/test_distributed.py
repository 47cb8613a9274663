"""The collectives in two gloo processes against the same call in one."""

from pathlib import Path

import pytest
import torch

from reid_core import distributed
from tests.ranks import run_ranks


def collectives() -> dict[str, torch.Tensor]:
    """Each rank holds its half of six rows; one rank holds all of them."""
    rank, share = distributed.rank(), 6 // distributed.world_size()
    mine = slice(rank * share, (rank + 1) * share)
    x = torch.arange(12, dtype=torch.float64).reshape(6, 2)[mine].clone().requires_grad_()
    position = torch.tensor([3, 0, 5, 1, 4, 2])[mine]
    (ordered,) = distributed.gather_batch(position, x)
    loss = distributed.global_mean((x**2).sum(dim=1), position != 5)
    (distributed.gather_with_grad(x) ** 3).sum().backward()
    memory = [torch.full((2,), float(rank)), torch.tensor(rank == 0), torch.tensor([rank])]
    distributed.copy_from_first_rank(memory)
    grad = distributed.gather_rows(x.grad) / distributed.world_size()
    flat = torch.cat([m.double().reshape(-1) for m in memory])
    return {
        "ordered": ordered,
        "loss": distributed.mean_over_ranks(loss),
        "grad": grad,
        "memory": flat,
    }


@pytest.mark.ddp
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    (one,) = run_ranks(collectives, 1, tmp_path)
    for other in run_ranks(collectives, 2, tmp_path):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_one_rank_by_hand() -> None:
    result = collectives()
    assert result["ordered"][:, 0].tolist() == [2, 6, 10, 0, 8, 4]
    assert result["loss"].item() == pytest.approx((1 + 13 + 85 + 145 + 221) / 5)
    assert result["memory"].tolist() == [0, 0, 1, 0]


def test_no_valid_query_gives_zero() -> None:
    loss = distributed.global_mean(torch.tensor([1.0]), torch.tensor([False]))
    assert loss.item() == 0


def test_a_state_that_is_not_finite_is_told() -> None:
    with pytest.raises(ValueError, match="not finite"):
        distributed.check_equal_on_ranks([torch.tensor([float("nan")])], "the memory")
