"""Search spaces of SNNet, which has no label stage; after the first two, the ablation tables of the paper."""

from typing import Any

from ray import tune

WEIGHTS = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]

LABELLING: dict[str, Any] = {}
TRAINING = {
    "symmetric_weight": tune.uniform(0.0, 1.0),
    "neighbour_weight": tune.uniform(0.0, 1.0),
    "threshold": tune.quniform(0.4, 0.8, 0.05),
    "min_window": tune.choice([5, 10, 20]),
    "positive_weight": tune.choice([1.0, 5.0, 10.0]),
    "hard_share": tune.choice([0.005, 0.01, 0.05]),
    "momentum": tune.choice([0.2, 0.5, 0.8]),
}
COMPONENTS = {
    "symmetric_weight": tune.grid_search([0.0, 0.8]),
    "neighbour_weight": tune.grid_search([0.0, 0.6]),
}
"""Table II, and the neighbour's labels alone."""
SYMMETRIC = SYM = {"symmetric_weight": tune.grid_search(WEIGHTS), "neighbour_weight": 0.0}
"""Table III."""
NEIGHBOUR = NH = {"symmetric_weight": 0.0, "neighbour_weight": tune.grid_search(WEIGHTS)}
"""Table IV."""
