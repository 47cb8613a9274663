"""Cost of the evaluation: products in blocks and the ranks of the matches.

``python -m benchmarks.evaluation --queries 3368 --gallery 15913`` prints CPU seconds (user and system,
all threads), wall seconds and memory beyond the features, of the whole, of the products alone, and of
sorting every row of products instead of counting.
"""

import argparse

import numpy as np

from benchmarks.measure import cost, in_own_process, people
from reid_core.evaluation.metrics import evaluate
from reid_core.evaluation.ranking import Images

BLOCK, SORTED_QUERIES = 256, 512


def side(feature: np.ndarray, pid: np.ndarray, camid: np.ndarray) -> Images:
    """Images with ids and cameras."""
    number = np.arange(len(pid))
    return Images(image_id=number, feature=feature, pid=pid, camid=camid, tracklet=number)


def average_precision(product: np.ndarray, query: Images, q: int, gallery: Images) -> float:
    """Of one query, by sorting its products (G,), as most published code does."""
    order = np.argsort(-product)
    same = gallery.pid[order] == query.pid[q]
    match = same[~(same & (gallery.camid[order] == query.camid[q]))]
    rank = np.flatnonzero(match) + 1
    return float(np.mean((np.arange(len(rank)) + 1) / rank)) if len(rank) else float("nan")


def report(queries: int, images: int, dim: int, seed: int) -> None:
    """Measure and print one size."""
    feature, pid, camid = people(queries + images, dim, seed)
    query = side(feature[:queries], pid[:queries], camid[:queries])
    gallery = side(feature[queries:], pid[queries:], camid[queries:])
    few = side(feature[:64], pid[:64], camid[:64])
    evaluate(few, few)  # compile
    with cost() as whole:
        found = evaluate(query, gallery, block=BLOCK)
    product = np.empty((BLOCK, images), np.float32)
    with cost() as products:
        for start in range(0, queries, BLOCK):
            rows = query.feature[start : start + BLOCK]
            np.matmul(rows, gallery.feature.T, out=product[: len(rows)])
    sorted_queries = min(SORTED_QUERIES, queries)
    block = query.feature[:sorted_queries] @ gallery.feature.T
    with cost() as sorting:
        slow = [average_precision(block[q], query, q, gallery) for q in range(sorted_queries)]
    ranking, scale = whole.cpu - products.cpu, queries / sorted_queries
    difference = np.nanmax(np.abs(found.average_precision[:sorted_queries] - slow))
    print(
        f"{queries} x {images} x {dim}, seed {seed}: mAP {found.mAP:.4f}, {found.dropped} dropped"
    )
    print(
        f"  whole    {whole.cpu:8.2f} CPU-s {whole.wall:8.2f} s {whole.memory:6.0f} MB beyond the features"
    )
    print(f"  products {products.cpu:8.2f} CPU-s; whole / products {whole.cpu / products.cpu:.2f}")
    print(f"  ranking  {ranking:8.2f} CPU-s (the difference)")
    print(f"  sorting  {sorting.cpu * scale:8.2f} CPU-s ({sorted_queries} queries, scaled)")
    print(
        f"  sorting / ranking {sorting.cpu * scale / ranking:.1f}; largest AP difference {difference:.1e}"
    )


def main() -> None:
    """Read the size and measure it in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=3368)
    parser.add_argument("--gallery", type=int, default=15_913)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    for seed in args.seeds:
        in_own_process(report, args.queries, args.gallery, args.dim, seed)


if __name__ == "__main__":
    main()
