"""Search spaces of HDCPD; after the first two, its ablation tables and the points that its register leaves open."""

from ray import tune

LABELLING = {
    "eps": tune.quniform(0.40, 0.70, 0.05),
    "min_samples": tune.choice([4, 5, 8]),
    "k1": tune.choice([20, 30]),
    "k2": tune.choice([3, 6]),
}
TRAINING = {
    "gamma": tune.uniform(0.0, 1.0),
    "temperature": tune.loguniform(0.03, 0.1),
    "local_temperature": tune.loguniform(0.05, 0.6),
    "base_temperature": tune.loguniform(0.03, 1.0),
    "teacher_temperature": tune.choice([0.5, 1.0]),
    "momentum": tune.choice([0.1, 0.2, 0.3]),
    "ema": tune.choice([0.99, 0.999]),
}
COMPONENTS = {
    "contrast": tune.grid_search(["centroid", "hardest"]),
    "local": tune.grid_search(["none", "all"]),
    "distil": tune.grid_search(["none", "probability"]),
}
"""Table VIII and the three combinations that it leaves out."""
DISTIL = {"distil": tune.grid_search(["none", "feature", "probability"])}
"""Table X."""
GAMMA = LAMBDA = {"gamma": tune.grid_search([0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 1.5])}
"""Table XI, which calls it lambda."""
TEMPERATURE = TAU = {
    "temperature": tune.grid_search([0.05, 0.6]),
    "local_temperature": tune.grid_search([0.05, 0.6]),
}
"""Register C1."""
CLUSTER_EVERY = {"cluster_every": tune.grid_search([1, 2])}
"""Register C6."""
MEMORY_SOURCE = {"memory_source": tune.grid_search(["teacher", "student"])}
"""Register C7."""
LOCAL = {"local": tune.grid_search(["none", "all", "hardest_per_identity"])}
"""Register C8 and C9."""
SHARPENING = {
    "base_temperature": tune.grid_search([0.05, 1.0]),
    "teacher_temperature": tune.grid_search([0.5, 1.0]),
}
"""Register C10."""
TEACHER = {
    "ema_ramp": tune.grid_search(["none", "mean_teacher", "released"]),
    "ema_bn": tune.grid_search([True, False]),
    "teacher_aug": tune.grid_search(["strong", "weak"]),
}
"""Register C12 and C13, and the ramp that only the release has."""
