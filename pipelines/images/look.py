"""Every image is looked at once before a run, by Ray tasks or in this process, which fills the caches of the nodes."""

import os

from pipelines.images.blocks import NO_PROGRESS_S
from pipelines.nodes.share import DECODE_CPUS
from pipelines.results.bar import Bar
from reid_core.data.check import unreadable
from reid_core.data.decode import ImageStore

CHUNK = 256  # images one task looks at


def look_in_tasks(store: ImageStore, paths: list[str]) -> list[tuple[str, str]]:
    """Paths and reasons of images that cannot be read or decoded, found on all CPUs of the cluster.

    Raises:
        TimeoutError: nothing could be read for as long as Ray Data would wait in a run.
    """
    import ray

    task = ray.remote(num_cpus=DECODE_CPUS)(_look)
    waiting = [task.remote(store, paths[i : i + CHUNK]) for i in range(0, len(paths), CHUNK)]
    bad: list[tuple[str, str]] = []
    with Bar("reading images", len(paths)) as bar:
        while waiting:
            done, waiting = ray.wait(waiting, timeout=bar.every_s)
            bar.update(min(len(done) * CHUNK, len(paths) - bar.done))
            bad += [row for rows in ray.get(done) for row in rows]
            if bar.quiet_s > NO_PROGRESS_S:
                raise TimeoutError(
                    f"no image was looked at for {NO_PROGRESS_S} s: {len(waiting)} tasks of {DECODE_CPUS} CPUs "
                    f"wait for room or for {store.root}; see `ray status`"
                )
    return bad


def look_here(store: ImageStore, paths: list[str]) -> list[tuple[str, str]]:
    """Likewise, in threads of this process."""
    threads = len(os.sched_getaffinity(0))
    with Bar("reading images", len(paths)) as bar:
        return unreadable(paths, store.read, threads=threads, progress=bar.over)


def _look(store: ImageStore, paths: list[str]) -> list[tuple[str, str]]:
    return unreadable(paths, store.read, threads=2)
