"""Compile the kernels of labels and of ranking, so that no run waits for it: ``python -m reid_core.compiled``.

What was compiled is kept (``reid_core.kernel``); where that is there already, this takes a second.
"""

import numpy as np

from reid_core.evaluation.ranking import Images, match_ranks, top_k
from reid_core.labelling.jaccard import jaccard_graph
from reid_core.labelling.neighbours import merge_neighbours, nearest

COUNT, DIM, NEAREST = 64, 8, 20  # of drawn images: too few to take time


def compile_all() -> None:
    """Run every kernel with the types of a run, on drawn features; Ray's arrays are read-only, which is a type."""
    drawn = np.random.default_rng(0).standard_normal((COUNT, DIM)).astype(np.float32)
    own = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    shared = own.copy()
    shared.flags.writeable = False
    row = np.arange(COUNT)
    for feature in (own, shared):
        found = merge_neighbours([(0, nearest(feature, NEAREST))], NEAREST)
        jaccard_graph(feature, found)
        images = Images(image_id=row, feature=feature, pid=row % 8, camid=row % 3, tracklet=row)
        match_ranks(images, images)
        top_k(images, images, NEAREST)


if __name__ == "__main__":
    compile_all()
