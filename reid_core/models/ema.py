"""A teacher: a copy of the student that follows it as an exponential moving average and has no gradient."""

import copy
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from reid_core.models.normalisation import GroupBatchNorm

Ramp = Literal["none", "mean_teacher", "released"]


def teacher_of(student: nn.Module, *, own_statistics: bool = False) -> nn.Module:
    """A deep copy of ``student`` that is not trained; make it before data parallelism wraps the student.

    Args:
        student: the network to follow.
        own_statistics: the running BatchNorm statistics move by the teacher's own batches; if not, they
            stay as ``follow`` leaves them. Its training forward uses batch statistics either way.
    """
    teacher = copy.deepcopy(student).requires_grad_(False)
    if not own_statistics:
        for layer in teacher.modules():
            if isinstance(layer, GroupBatchNorm):
                layer.momentum = 0.0
    return teacher


def ema_weight(step: int, *, ema: float, ramp: Ramp, reset: int) -> float:
    """Weight of the teacher's old value at ``step`` (methods.md 4.4), in [0, ema].

    Args:
        step: optimiser steps made before this one.
        ema: the largest weight.
        ramp: "none" is always ``ema``; "mean_teacher" is 0, 1/2, 2/3, ... up to ``ema``; "released" is the
            same from step ``reset`` on, where the teacher becomes the student, and ``ema`` before it.
        reset: of "released".
    """
    first = reset if ramp == "released" else 0
    if ramp == "none" or step < first:
        return ema
    return min(1 - 1 / (step - first + 1), ema)


def follow(teacher: nn.Module, student: nn.Module, weight: float, *, statistics: bool) -> None:
    """Move the teacher: weight x teacher + (1 - weight) x student; with weight 0 it becomes the student.

    Args:
        teacher: changed in place; of the same structure as ``student``.
        student: the trained network.
        weight: of the old value, in [0, 1].
        statistics: move the running means and variances as well as the parameters.
    """
    old, new = (list(_moved(network, statistics)) for network in (teacher, student))
    get_ema_multi_avg_fn(weight)(old, new, 0)


def _moved(network: nn.Module, statistics: bool) -> Iterator[Tensor]:
    yield from network.parameters()
    if statistics:
        yield from (x for x in network.buffers() if torch.is_floating_point(x))
