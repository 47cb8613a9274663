"""From one loss a query to the named terms of a step."""

from torch import Tensor

from reid_core.distributed import global_mean


def by_domain(loss_b: Tensor, domain_b: Tensor, classes: int) -> dict[str, Tensor]:
    """The mean over the global batch of each domain (1:1 in the total); only ``target`` without source classes."""
    if not classes:
        return {"target": global_mean(loss_b)}
    return {
        "target": global_mean(loss_b, domain_b == 0),
        "source": global_mean(loss_b, domain_b == 1),
    }
