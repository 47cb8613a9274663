"""Search spaces of ISE; after the first two, the ablation tables of the paper."""

from ray import tune

LABELLING = {
    "eps": tune.quniform(0.40, 0.70, 0.05),
    "min_samples": tune.choice([2, 4, 8]),
    "k1": tune.choice([20, 30]),
    "k2": tune.choice([3, 6]),
}
TRAINING = {
    "lam0": tune.uniform(0.1, 2.0),
    "beta": tune.loguniform(0.01, 1.0),
    "supports": tune.choice([1, 3, 5]),
    "temperature": tune.loguniform(0.03, 0.1),
    "momentum": tune.choice([0.1, 0.2, 0.5]),
    "update": tune.choice(["all", "hard"]),
}
COMPONENTS = {"supports": tune.grid_search([0, 1]), "beta": tune.grid_search([0.0, 0.1])}
"""Table 1 without its constant degree, which is in DEGREE."""
DEGREE = {"degree": tune.grid_search(["constant", "square", "linear", "log"])}
"""Table 2."""
DIRECTION = {"direction": tune.grid_search(["random", "farthest", "nearest"])}
"""Table 3, upper part."""
LAM0 = LAMBDA_0 = {"lam0": tune.grid_search([0.1, 0.5, 1.0, 2.0])}
"""Table 3, lower part."""
SUPPORTS = K = {"supports": tune.grid_search([1, 3, 5, 10])}
"""Table 4."""
MIXUP = {"supports": 0, "beta": 0.0, "mixup": tune.grid_search([0.1, 0.2, 0.5, 1.0, 2.0, 4.0])}
"""Fig. 5; the grid is ours."""
BETA = {"beta": tune.grid_search([0.0, 0.01, 0.1, 1.0])}
"""The grid is ours."""
