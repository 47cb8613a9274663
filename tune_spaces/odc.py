"""Search spaces of ODC; after the first two, our grid of the number of clusters."""

from ray import tune

LABELLING = {"clusters": tune.choice([250, 500, 1000]), "min_size": tune.choice([5, 10, 20])}
TRAINING = {
    "clusters": tune.choice([250, 500, 1000]),
    "momentum": tune.choice([0.2, 0.5, 0.8]),
    "refresh_every": tune.choice([1, 10, 100]),
    "reweight": tune.choice([0.0, 0.5, 1.0]),
    "dropout": tune.choice([0.0, 0.5]),
}
CLUSTERS = {"clusters": tune.grid_search([125, 250, 500, 1000]), "min_size": 5}
