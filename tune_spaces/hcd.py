"""Search spaces of HCD; after the first two, the tables of the supplement and our grids of its other settings."""

from ray import tune

LABELLING = {
    "eps": tune.quniform(0.40, 0.70, 0.05),
    "min_samples": tune.choice([2, 3, 4]),
    "k1": tune.choice([20, 30]),
    "k2": tune.choice([3, 6]),
}
TRAINING = {
    "sigma": tune.choice([0.1, 0.25, 0.4]),
    "levels": tune.choice([1, 2, 3]),
    "anchors": tune.choice([4, 8, 16]),
    "alpha_m": tune.choice([0.9, 0.95, 0.99]),
    "alpha_s": tune.choice([0.5, 0.9, 0.99]),
    "split_assign": tune.choice(["raw", "column_normalised"]),
    "temperature": tune.loguniform(0.03, 0.1),
    "momentum": tune.choice([0.1, 0.2, 0.5]),
}
ALPHA_M = {"alpha_m": tune.grid_search([0.1, 0.3, 0.5, 0.7, 0.9, 0.99])}
ALPHA_S = {"alpha_s": tune.grid_search([0.3, 0.5, 0.7, 0.9, 0.95, 0.99])}
LEVELS = H = {"levels": tune.grid_search([1, 2, 3, 4])}
ANCHORS = K = {"anchors": tune.grid_search([2, 4, 8, 16])}
SIGMA = {"sigma": tune.grid_search([0.1, 0.25, 0.4])}
