"""Batch normalisation whose statistics do not depend on how a batch is spread over ranks.

b images of this rank's share, g images a group, G = b / g groups of this rank, C channels.

Training statistics are those of groups of consecutive images, so any number of ranks whose shares
consist of whole groups computes the same. Running statistics move once a forward pass of the whole
network, by the mean over all groups of all ranks: see ``move_running_statistics``.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid_core.distributed import mean_over_ranks


class GroupBatchNorm(nn.Module):
    """BatchNorm over groups of consecutive images; maps (b, C, H, W) and vectors (b, C).

    Parameters and state-dict names are those of the layer it replaces, and so is eval mode.

    Args:
        norm: the layer to replace; its parameters are taken over, its running statistics copied.
        group: g, images of one set of statistics.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, group: int) -> None:
        super().__init__()
        if norm.momentum is None or norm.running_mean is None or norm.running_var is None:
            raise ValueError("a BatchNorm without running statistics or momentum cannot be grouped")
        self.group, self.eps, self.momentum = group, norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean.clone())
        self.register_buffer("running_var", norm.running_var.clone())
        tracked = norm.running_mean.new_zeros((), dtype=torch.long)
        self.register_buffer("num_batches_tracked", tracked)
        self.pending: Tensor | None = None  # (2, C): mean and variance, averaged over groups

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (b, C, H, W) or (b, C).

        Raises:
            ValueError: in training, b is not a multiple of the group.
        """
        if not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        if len(x) % self.group:
            raise ValueError(
                f"{len(x)} images of a rank and domain are no multiple of bn_group = {self.group}; "
                "choose a --method.bn-group that divides them, or another number of workers"
            )
        out, stat_G2C = zip(*map(self._normalise, x.split(self.group)), strict=True)
        self.pending = torch.stack(stat_G2C).mean(0)
        return out[0] if len(out) == 1 else torch.cat(out)

    def _normalise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One group normalised, and its mean and unbiased variance (2, C)."""
        # With momentum 1 the kernel leaves the group's statistics in the running ones it is given.
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        out = F.batch_norm(
            x, mean, var, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps
        )
        return out, torch.stack([mean, var])

    def extra_repr(self) -> str:
        return f"{len(self.running_mean)}, group={self.group}"


class DomainBatchNorm(nn.Module):
    """DSBN: own statistics and own affine map for source and target; equal at the start.

    Chang, You, Seo, Kwak, Han: Domain-Specific Batch Normalization for Unsupervised Domain
    Adaptation (CVPR 2019). A training batch is [source half; target half]; eval mode uses the
    target copy.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, group: int) -> None:
        super().__init__()
        self.target = GroupBatchNorm(norm, group)
        self.source = GroupBatchNorm(copy.deepcopy(norm), group)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (b, C, H, W) or (b, C).

        Raises:
            ValueError: in training, b is odd or half of it is not a multiple of the group.
        """
        if not self.training:
            return self.target(x)
        if len(x) % 2:
            raise ValueError(f"{len(x)} images cannot be one half source and one half target")
        source, target = x.chunk(2)
        return torch.cat([self.source(source), self.target(target)])


def convert(module: nn.Module, *, group: int, domains: int = 1) -> nn.Module:
    """Replace every BatchNorm1d and 2d in ``module``, which is changed in place, and return it.

    Args:
        module: keeps its weights and which of them are trained.
        group: images of one set of training statistics.
        domains: 1, or 2 for DSBN.
    """
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return (GroupBatchNorm if domains == 1 else DomainBatchNorm)(module, group)
    for name, child in module.named_children():
        setattr(module, name, convert(child, group=group, domains=domains))
    return module


@torch.no_grad()
def move_running_statistics(module: nn.Module) -> None:
    """Move the running statistics of all layers by those of the forward pass just made.

    They move by the mean of the group means and unbiased variances over all ranks, in one
    all_reduce for the whole network. Every rank must call this equally often, with equally many
    groups.
    """
    waiting = [
        (layer, layer.pending)
        for layer in module.modules()
        if isinstance(layer, GroupBatchNorm) and layer.pending is not None
    ]
    if not waiting:
        return
    stat = mean_over_ranks(torch.cat([pending for _, pending in waiting], dim=1))
    widths = [pending.shape[1] for _, pending in waiting]
    for (layer, _), (mean, var) in zip(waiting, stat.split(widths, dim=1), strict=True):
        layer.running_mean.lerp_(mean, layer.momentum)
        layer.running_var.lerp_(var, layer.momentum)
        layer.num_batches_tracked += 1
        layer.pending = None
