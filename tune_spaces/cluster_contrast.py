"""Search spaces of ClusterContrast; after the first two, our grids."""

from ray import tune

LABELLING = {
    "eps": tune.quniform(0.40, 0.70, 0.05),
    "min_samples": tune.choice([2, 4, 8]),
    "k1": tune.choice([20, 30]),
    "k2": tune.choice([3, 6]),
}
TRAINING = {
    "temperature": tune.loguniform(0.03, 0.1),
    "momentum": tune.choice([0.1, 0.2, 0.5]),
    "update": tune.choice(["all", "hard"]),
}
UPDATE = {"update": tune.grid_search(["all", "hard"])}
MOMENTUM = {"momentum": tune.grid_search([0.0, 0.1, 0.2, 0.5, 0.9])}
TEMPERATURE = {"temperature": tune.grid_search([0.03, 0.05, 0.07, 0.1])}
