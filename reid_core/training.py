"""The one training loop of all methods. It knows no Ray, no file and no logger: the caller logs and saves."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from reid_core.batch import Batch, Step
from reid_core.distributed import data_parallel, mean_over_ranks
from reid_core.method import Objective


class _Both(nn.Module):
    """Embedder and objective as the one module that data parallelism wraps; both may hold parameters."""

    def __init__(self, embedder: nn.Module, objective: nn.Module) -> None:
        super().__init__()
        self.embedder = embedder
        self.objective = objective

    def forward(self, batch: Batch, progress: float) -> Step:
        return self.objective(self.embedder, batch, progress)


class Learner:
    """An embedder and its objective, wrapped once so that gradients are averaged over ranks."""

    def __init__(self, embedder: nn.Module, objective: nn.Module) -> None:
        self.embedder = embedder
        self.objective: Objective = objective  # type: ignore[assignment]
        self.forward = data_parallel(_Both(embedder, objective))


def train_round(
    learner: Learner,
    batches: Iterator[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    progress: tuple[float, float],
    num_steps: int,
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Run one round and yield the detached loss terms and other scalars of every step.

    The terms are of this rank (see ``reduce_terms``), the scalars are what ``update`` returned.

    Args:
        learner: network, losses and memory; the objective's ``update`` follows every optimiser step.
        batches: this rank's share of global batches; at least ``num_steps``.
        optimizer: over the parameters of both.
        progress: share of the whole run at the first step and after the last one.
        num_steps: optimiser steps of this round.
    """
    learner.forward.train()
    first, end = progress
    for number, batch in zip(range(num_steps), batches, strict=False):
        step = learner.forward(batch, first + (end - first) * number / num_steps)
        optimizer.zero_grad(set_to_none=True)
        step.total.backward()
        optimizer.step()
        scalars = learner.objective.update(learner.embedder, batch, step) or {}
        yield {name: term.detach() for name, term in step.terms.items()}, scalars


class NonFiniteLoss(ValueError):
    """A loss term became NaN or infinite."""


def reduce_terms(steps: list[dict[str, Tensor]], first: int) -> list[dict[str, float]]:
    """Average the terms of consecutive steps over ranks; one collective and one transfer for all of them.

    Args:
        steps: what ``train_round`` yielded, the same steps on every rank.
        first: number of the first of them in the round, for messages.

    Raises:
        NonFiniteLoss: a term is NaN or infinite; names the step and the term, equal on all ranks.
    """
    names = list(steps[0])
    table = torch.stack([torch.stack([step[name] for name in names]) for step in steps])
    table = mean_over_ranks(table).cpu()
    bad = (~table.isfinite()).nonzero()
    if len(bad):
        step, term = bad[0].tolist()
        raise NonFiniteLoss(
            f"loss term {names[term]!r} is {table[step, term].item()} at step {first + step}; the last "
            "checkpoint is kept: lower --method.optim.lr, raise --method.temperature, or use fp32"
        )
    return [dict(zip(names, row, strict=True)) for row in table.tolist()]
