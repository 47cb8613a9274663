"""Search spaces of the hybrid memory; after the first two, the part of SpCL that HDCPD leaves out."""

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
}
EPS_GAP = {"eps_gap": tune.grid_search([0.0, 0.01, 0.02, 0.05])}
"""Without and with self-paced reliability; the grid is ours, 0.02 is SpCL's."""
