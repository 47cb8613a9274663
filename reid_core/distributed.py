"""The only user of ``torch.distributed``; every function works with one process.

W ranks, b rows a rank, B = W b. Rows are always stacked in rank order. Every collective must be
reached by all ranks equally often.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def data_parallel(module: nn.Module) -> nn.Module:
    """Average the gradients of ``module`` over ranks; buffers are each rank's own. Itself with one rank.

    Rank 0's parameters and buffers are copied to the others once, here.
    """
    if world_size() == 1:
        return module
    return DistributedDataParallel(module, forward_sync_buffers=False)


@torch.no_grad()
def gather_rows(x_b: Tensor) -> Tensor:
    """All ranks' rows (B, ...), without gradient; ``x_b`` has the same shape on every rank."""
    if world_size() == 1:
        return x_b.detach()
    parts = [torch.empty_like(x_b) for _ in range(world_size())]
    dist.all_gather(parts, x_b.detach().contiguous())
    return torch.cat(parts)


@torch.no_grad()
def gather_batch(position_b: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
    """All ranks' rows in the order of the global batch: sorted by ``position_b`` (b,) int64."""
    order = gather_rows(position_b).argsort()
    return tuple(gather_rows(x_b)[order] for x_b in rows)


class _GatherWithGrad(torch.autograd.Function):
    """Backward sums over ranks the gradient of each rank's own rows."""

    @staticmethod
    def forward(ctx: Any, x_b: Tensor) -> Tensor:
        return gather_rows(x_b)

    @staticmethod
    def backward(ctx: Any, grad_B: Tensor) -> Tensor:  # type: ignore[override]
        grad_B = grad_B.contiguous()
        dist.all_reduce(grad_B)
        return grad_B.chunk(world_size())[rank()]


def gather_with_grad(x_b: Tensor) -> Tensor:
    """All ranks' rows (B, ...); the gradient of a row is the sum of what every rank sends back to it."""
    return x_b if world_size() == 1 else _GatherWithGrad.apply(x_b)  # type: ignore[return-value]


@torch.no_grad()
def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum over ranks, equal on all of them; without gradient."""
    total = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean over ranks, equal on all of them; without gradient."""
    return sum_over_ranks(x) / world_size()


def global_mean(loss_b: Tensor, valid_b: Tensor | None = None) -> Tensor:
    """This rank's part of the mean over all valid queries of the global batch; a scalar.

    DDP averages gradients over ranks, so each rank returns W x (sum over its own valid queries) /
    (valid queries of all ranks): the mean of the parts over ranks is the global mean, and so is that
    of their gradients. Zero, with zero gradient, when no query is valid.

    Args:
        loss_b: (b,) loss of each query.
        valid_b: (b,) bool, queries that count; all when None.
    """
    if valid_b is None:
        valid_b = torch.ones_like(loss_b, dtype=torch.bool)
    count = sum_over_ranks(valid_b.sum()).clamp(min=1)
    kept = torch.where(valid_b, loss_b, torch.zeros_like(loss_b))
    return world_size() * kept.sum() / count


@torch.no_grad()
def copy_from_first_rank(tensors: list[Tensor]) -> None:
    """Overwrite ``tensors`` by rank 0's: what every rank computed alike may differ in the last bit on GPUs."""
    if world_size() > 1:
        for x in tensors:
            dist.broadcast(x, src=0)


def checksum(tensors: list[Tensor]) -> Tensor:
    """Sums of values and of squares of ``tensors`` in float64, (2,); to compare between ranks."""
    device = tensors[0].device if tensors else None
    total = torch.zeros(2, dtype=torch.float64, device=device)
    for x in tensors:
        wide = x.detach().double()
        total += torch.stack([wide.sum(), wide.square().sum()])
    return total


def check_equal_on_ranks(tensors: list[Tensor], what: str) -> float:
    """Compare a checksum of ``tensors`` between ranks and return it.

    Raises:
        ValueError: a value is NaN or infinite.
        RuntimeError: the ranks differ; ``what`` names the state.
    """
    own = checksum(tensors)
    every = gather_rows(own[None])
    if not every.isfinite().all():
        raise ValueError(
            f"{what} is not finite any more; the last checkpoint is kept: lower --method.optim.lr, raise "
            "--method.temperature, or use fp32"
        )
    if not (every == every[0]).all():
        raise RuntimeError(
            f"{what} differs between ranks: checksums {every[:, 0].tolist()}; this is a defect of the method, "
            "please report it with config.json and environment.json"
        )
    return float(own[0])
