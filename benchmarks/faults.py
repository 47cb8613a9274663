"""What a run survives: faults are injected from outside, and its numbers compared with those of an unbroken run.

Run it from the root: ``python -m benchmarks.faults [--only WORD ...]``; it prints a Markdown table.
"""

import argparse
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.injection import Run, Scene, cluster_of, outcome
from benchmarks.s3 import FailingServer
from reid_core.data.datasets import synthetic

NODES = 3  # two for a train worker each, one for everything else
WORKERS = ("--workers", "2")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to a run, and where it runs."""

    what: str
    how: str
    times: int
    inject: Callable[[Scene], None]
    place: Literal["one node", "several nodes", "S3"] = "one node"


def kill_decoders(scene: Scene) -> None:
    """While images are extracted."""
    for number in (1, 3):
        scene.wait_for_round(number)
        scene.strike("Map(decode_block)")


def kill_labellers(scene: Scene) -> None:
    """While they cluster."""
    for number in (1, 3):
        scene.strike(f"labels of round {number}")


def kill_evaluators(scene: Scene) -> None:
    """While they rank the gallery."""
    for number in (1, 3):
        scene.wait_for_round(number)
        scene.strike("evaluation")


def kill_worker(scene: Scene) -> None:
    """While it trains."""
    scene.wait_for_steps(2)
    scene.strike("RayTrainWorker")


def end_worker(scene: Scene) -> None:
    """Ask a training worker to end, as the notice of a preemption does."""
    scene.wait_for_steps(2)
    scene.strike("RayTrainWorker", signal.SIGTERM)


def kill_driver(scene: Scene) -> None:
    """While the workers train; the same command is given again."""
    scene.wait_for_steps(2)
    scene.process.kill()
    scene.process.wait()
    scene.process = scene.run.start()


def lose(title: str, wait: Callable[[Scene], None]) -> Callable[[Scene], None]:
    """A fault that takes the node where a process of this title works."""

    def inject(scene: Scene) -> None:
        wait(scene)
        scene.lose_node(title)

    return inject


def in_round(scene: Scene) -> None:
    """Until round 2 begins."""
    scene.wait_for_round(2)


FAULTS = (
    Fault(what="train worker killed", how="SIGKILL in training", times=1, inject=kill_worker),
    Fault(what="train worker preempted", how="SIGTERM in training", times=1, inject=end_worker),
    Fault(what="decode task killed", how="SIGKILL", times=2, inject=kill_decoders),
    Fault(what="label task killed", how="SIGKILL", times=2, inject=kill_labellers),
    Fault(what="evaluation task killed", how="SIGKILL", times=2, inject=kill_evaluators),
    Fault(
        what="driver killed", how="SIGKILL in training, same command", times=1, inject=kill_driver
    ),
    *(
        Fault(
            what=f"node lost in {stage}",
            how="SIGKILL to all its processes, another joins",
            times=1,
            inject=lose(title, wait),
            place="several nodes",
        )
        for stage, title, wait in (
            ("extraction", "Map(decode_block)", in_round),
            ("labelling", "labels of round 2", in_round),
            ("training", "RayTrainWorker", lambda scene: scene.wait_for_steps(2)),
            ("evaluation", "evaluation", in_round),
        )
    ),
    Fault(
        what="storage fails once",
        how="503 to the first PUT and GET of every object",
        times=0,  # counted
        inject=lambda scene: scene.wait_for_steps(0),
        place="S3",
    ),
)


@contextmanager
def place_of(fault: Fault, data: str, work: Path) -> Iterator[tuple[Scene, Callable[[], int]]]:
    """A run that starts where the fault wants it, and how often faults have been injected."""
    if fault.place == "several nodes":
        with cluster_of(NODES) as cluster:
            run = Run(
                data=data,
                work=work,
                more=WORKERS,
                environment={"RAY_ADDRESS": str(cluster.address)},
            )
            yield Scene(run=run, process=run.start(), cluster=cluster), lambda: fault.times
    elif fault.place == "S3":
        with FailingServer() as server:
            os.environ |= server.environment
            run = Run(data=data, work=work, more=WORKERS, storage="s3://bucket/runs")
            yield Scene(run=run, process=run.start()), lambda: server.failed
    else:
        run = Run(data=data, work=work, more=WORKERS)
        yield Scene(run=run, process=run.start()), lambda: fault.times


def line(fault: Fault, data: str, work: Path, whole: Run) -> str:
    """One row of the table."""
    with place_of(fault, data, work) as (scene, count):
        run = scene.run
        try:
            fault.inject(scene)
            run.finish(scene.process)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            print(error, file=sys.stderr)
            return f"| {fault.what} | {fault.how} | {count()} | **no** | | |"
        finally:
            if scene.process.poll() is None:
                scene.process.kill()
        equal = "yes" if outcome(run.storage or run.work) == outcome(whole.work) else "**no**"
        return f"| {fault.what} | {fault.how} | {count()} | yes | {run.redone()} | {equal} |"


def main() -> int:
    """Print the table; 1 where a run did not survive or gave other numbers."""
    failed = False
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[""], help="words in the names of faults")
    only = parser.parse_args().only
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # of clusters of several nodes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = synthetic.draw(str(folder / "set"), ids=8, cameras=3, images=4)
        whole = Run(data=data, work=folder / "whole", more=WORKERS)
        whole.finish(whole.start())
        print("| fault | injected how | times | survived | rounds redone | numbers equal |")
        print("|---|---|---|---|---|---|")
        for number, fault in enumerate(FAULTS):
            if any(word in fault.what for word in only):
                row = line(fault, data, folder / str(number), whole)
                print(row, flush=True)
                failed |= "**no**" in row
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
