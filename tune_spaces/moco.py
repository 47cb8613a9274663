"""Search spaces of MoCo, which has no label stage; after the first two, the settings that HCD's table leaves open."""

from typing import Any

from ray import tune

LABELLING: dict[str, Any] = {}
TRAINING = {
    "temperature": tune.loguniform(0.03, 0.3),
    "queue": tune.choice([1024, 4096, 8192]),
    "ema": tune.choice([0.99, 0.999, 0.9999]),
    "projection": tune.choice([64, 128, 256]),
}
QUEUE = {"queue": tune.grid_search([256, 512, 1024, 4096, 8192, 16384, 65536])}
"""From a few batches to MoCo's own size; more than there are images means old keys of the same image."""
EMA = {"ema": tune.grid_search([0.0, 0.9, 0.99, 0.999, 0.9999])}
"""How slowly the key encoder follows: MoCo's own ablation."""
