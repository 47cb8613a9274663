"""Cost of the label stage: k-NN, Jaccard graph, DBSCAN.

``python -m benchmarks.labels --images 12936 32621`` prints for each size CPU seconds (user and system,
all threads), wall seconds and memory beyond the features, and the ratios to half an N x N product (in
bfloat16 where the CPU has units for it), to faiss's exact search, and for small sizes to the dense
distance with scikit-learn's DBSCAN, whose labels must be the same.

``--shards 5`` measures `reid cluster` instead, on that many blocks as tasks of a local Ray: CPU seconds
and peak memory of all processes, and whether the labels are those of one process (``--compare-up-to``).
"""

import argparse
import os
from functools import partial
from tempfile import TemporaryDirectory

import faiss
import numpy as np
import pyarrow as pa
import torch
from sklearn.cluster import DBSCAN

from benchmarks.measure import Cost, cost, cost_of_all, in_own_process, people
from pipelines.cluster import ClusterJob, run
from reid_core.labelling import screens
from reid_core.labelling.blocks import Blocks
from reid_core.labelling.clusters import cluster, confidence, without_singles
from reid_core.labelling.dbscan import dbscan
from reid_core.labelling.jaccard import jaccard_graph
from reid_core.labelling.neighbours import nearest
from reid_core.labelling.quality import label_free_score
from reid_core.labelling.tasks import InProcess
from reid_core.labels import Features
from reid_core.tables import features_table, write_table
from tests.reference.jaccard import jaccard_distance

EPS, MIN_SAMPLES, K1, K2 = 0.6, 4, 30, 6


def stages(feature: np.ndarray) -> tuple[dict[str, Cost], np.ndarray]:
    """What ``cluster`` does, each stage measured; and the labels (N,)."""
    with cost() as knn:
        neighbours = nearest(feature, K1)
    with cost() as jaccard:
        graph = jaccard_graph(feature, neighbours, k2=K2, eps=EPS)
    with cost() as clustering:
        label, _ = without_singles(*dbscan(graph, EPS, MIN_SAMPLES))
    with cost() as report:
        confidence(Blocks([feature], [0, len(feature)]), label, InProcess())
        label_free_score(graph, label)
    print(f"  {len(graph.row) / len(feature):.1f} pairs an image, {label.max() + 1} clusters")
    return {"k-NN": knn, "Jaccard": jaccard, "DBSCAN": clustering, "scores": report}, label


def half_product(feature: np.ndarray) -> Cost:
    """The tiles on and above the diagonal, and nothing else."""
    multiply, _, _ = screens._multiplier(feature, feature)
    values, tile = np.empty(screens.TILE**2, np.float32), screens.TILE
    starts = range(0, len(feature), tile)
    with cost() as spent:
        for top in starts:
            for left in starts[top // tile :]:
                a, b = slice(top, top + tile), slice(left, left + tile)
                shape = len(feature[a]), len(feature[b])
                multiply(a, b, values[: shape[0] * shape[1]].reshape(shape))
    return spent


def report(count: int, dim: int, seed: int, *, faiss_too: bool, dense: bool) -> None:
    """Measure and print one size."""
    feature, _, _ = people(count, dim, seed)
    few, _, _ = people(3000, 64, seed)
    cluster(Features(image_id=np.arange(3000), feature=few))  # compile, start threads
    print(f"N {count}, D {dim}, seed {seed}, {torch.get_num_threads()} threads")
    spent, label = stages(feature)
    for name, one in spent.items():
        print(f"  {name:12} {one.cpu:8.2f} CPU-s {one.wall:8.2f} s {one.memory:7.0f} MB more")
    total = sum(one.cpu for one in spent.values())
    product = half_product(feature)
    wall, memory = (sum(getattr(one, k) for one in spent.values()) for k in ("wall", "memory"))
    print(f"  {'all':12} {total:8.2f} CPU-s {wall:8.2f} s {memory:7.0f} MB beyond the features")
    print(
        f"  half product {product.cpu:8.2f} CPU-s; label stage / half product {total / product.cpu:.2f}"
    )
    if faiss_too:
        with cost() as search:
            faiss.knn(feature, feature, K1, metric=faiss.METRIC_INNER_PRODUCT)
        print(
            f"  faiss k-NN   {search.cpu:8.2f} CPU-s; faiss / our k-NN {search.cpu / spent['k-NN'].cpu:.2f}"
        )
    if dense:
        with cost() as slow:
            expected = DBSCAN(eps=EPS, min_samples=MIN_SAMPLES, metric="precomputed").fit(
                jaccard_distance(feature, K1, K2)
            )
        same = np.array_equal(label, expected.labels_)
        print(
            f"  dense        {slow.cpu:8.2f} CPU-s, {slow.memory:.0f} MB more; labels equal: {same}"
        )


def report_tasks(count: int, dim: int, seed: int, shards: int, *, compare: bool) -> None:
    """Measure and print `reid cluster` on one size in blocks; always on a Ray of its own."""
    os.environ.pop("RAY_ADDRESS", None)
    feature, pid, camid = people(count, dim, seed)
    images = pa.table({"image_id": np.arange(count), "pid": pid, "camid": camid.astype(np.int16)})
    with TemporaryDirectory() as folder:
        path = f"{folder}/features.parquet"
        write_table(features_table(images, np.arange(count), feature), path)
        del feature
        job = ClusterJob(
            features=path, out=f"{folder}/labels.parquet", shards=shards, eps=EPS, k1=K1, k2=K2
        )
        with cost_of_all() as spent:
            labels = run(job)
        print(
            f"N {count}, D {dim}, seed {seed}, {shards} blocks as Ray tasks, Ray's start included"
        )
        print(
            f"  all processes {spent.cpu:8.2f} CPU-s {spent.wall:8.2f} s, peak {spent.memory:.0f} MB more"
        )
        print(f"  {labels.metrics['clusters']:.0f} clusters")
        if compare:
            rows = Features(image_id=np.arange(count), feature=people(count, dim, seed)[0])
            alone = cluster(rows, eps=EPS, min_samples=MIN_SAMPLES, k1=K1, k2=K2)
            print(f"  labels of one process equal: {np.array_equal(alone.label, labels.label)}")


def main() -> None:
    """Read the sizes and measure each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[4000, 12_936])
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--faiss-up-to", type=int, default=40_000, help="largest size for faiss")
    parser.add_argument("--dense-up-to", type=int, default=4000, help="and for the dense twin")
    parser.add_argument("--shards", type=int, default=0, help="blocks, as tasks of a local Ray")
    parser.add_argument("--compare-up-to", type=int, default=20_000, help="with one process")
    args = parser.parse_args()
    for count in args.images:
        for seed in args.seeds:
            if args.shards:
                compare = count <= args.compare_up_to
                case = partial(report_tasks, compare=compare)
                in_own_process(case, count, args.dim, seed, args.shards)
                continue
            sizes = {"faiss_too": count <= args.faiss_up_to, "dense": count <= args.dense_up_to}
            in_own_process(partial(report, **sizes), count, args.dim, seed)


if __name__ == "__main__":
    main()
