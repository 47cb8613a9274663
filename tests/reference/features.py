"""Features as re-ID has them: identities seen by cameras that shift them, outliers, exact copies."""

import numpy as np


def normalised(feature: np.ndarray) -> np.ndarray:
    feature = feature / np.linalg.norm(feature, axis=1, keepdims=True)
    return feature.astype(np.float32)


def people(
    count: int, *, dim: int = 64, noise: float = 0.7, copies: int = 0, seed: int = 0
) -> np.ndarray:
    """(count, dim) float32 unit rows of about count / 17 identities; one row in ten has none."""
    rng = np.random.default_rng(seed)
    identity = rng.standard_normal((max(2, count // 17), dim))
    camera = rng.standard_normal((6, dim))
    feature = identity[rng.integers(len(identity), size=count)]
    alone = rng.random(count) < 0.1
    feature[alone] = rng.standard_normal((alone.sum(), dim))
    feature = feature + 0.4 * camera[rng.integers(6, size=count)]
    feature += noise * rng.standard_normal((count, dim))
    feature[rng.integers(count, size=copies)] = feature[rng.integers(count, size=copies)]
    return normalised(feature)
