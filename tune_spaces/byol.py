"""Search spaces of BYOL, which has no label stage; after the first two, the settings that HCD's table leaves open."""

from typing import Any

from ray import tune

LABELLING: dict[str, Any] = {}
TRAINING = {
    "ema": tune.choice([0.96, 0.99, 0.996, 0.999]),
    "hidden": tune.choice([1024, 2048, 4096]),
    "projection": tune.choice([128, 256, 512]),
}
EMA = {"ema": tune.grid_search([0.0, 0.9, 0.99, 0.996, 0.999, 1.0])}
"""How slowly the target follows, from the online network itself to one that stays random."""
HEADS = {
    "hidden": tune.grid_search([512, 1024, 2048, 4096]),
    "projection": tune.grid_search([64, 128, 256, 512]),
}
