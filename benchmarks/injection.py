"""A run under way as a process of its own, and faults that reach it from outside: signals, and nodes that are lost."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow.fs as pafs
from ray.cluster_utils import Cluster

from benchmarks.rounds import TINY
from reid_core.storage import exists, join, open_folder, read_bytes

NAME = "a"  # of every run
ROUNDS = 4
SETTINGS = (
    *TINY, "--method.steps", "60", "--eval-every", "1", "--rounds", str(ROUNDS), "--cache", "",
)  # fmt: skip
"""Rounds of a second or two, so that a fault falls into one."""

LIMIT_S = 600.0  # for a moment or the end of a run, many processes starting on few cores
POLL_S = 0.01
SEARCH_S = 1.0  # for new processes, which takes more time than to look at known ones
Process = subprocess.Popen[bytes]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training command; the same arguments go on where it was killed."""

    data: str
    work: Path  # what it says is kept here, and its runs where ``storage`` is empty
    storage: str = ""
    method: str = "cluster_contrast"
    more: tuple[str, ...] = ()  # flags
    environment: dict[str, str] = field(default_factory=dict)
    behind: tuple[str, ...] = ()  # command that starts it elsewhere

    @property
    def folder(self) -> str:
        """Of the run, path or URI."""
        return join(self.storage or self.work, NAME)

    @property
    def said(self) -> Path:
        """What the command wrote to its terminal."""
        return self.work / "said.txt"

    def start(self) -> Process:
        """Start the command as a process."""
        self.work.mkdir(parents=True, exist_ok=True)
        words = ["train", self.method, "--preset", "demo", "--data", self.data, *SETTINGS]
        words += ["--storage", self.storage or str(self.work), "--name", NAME, *self.more]
        return subprocess.Popen(
            [*self.behind, sys.executable, "-m", "pipelines", *words],
            env=os.environ | self.environment,
            stdout=subprocess.DEVNULL,
            stderr=self.said.open("ab"),
        )

    def finish(self, process: Process) -> None:
        """Wait for a good end."""
        code = process.wait(timeout=LIMIT_S)
        assert code == 0, self.said.read_text()[-2000:]

    def evaluated(self) -> list[int]:
        """How many rounds were done at each evaluation; a round that is begun again is evaluated before again."""
        log = join(self.folder, "log.txt")
        text = read_bytes(log).decode() if exists(log) else ""
        return [int(number) for number in re.findall(r"after (\d+) rounds: ", text)]

    def redone(self) -> int:
        """Rounds that were begun again after their first evaluation, among them those that were broken off."""
        return len(self.evaluated()) - ROUNDS - 1


def outcome(storage: str | Path) -> dict[str, Any]:
    """All numbers of the run that has ended in a storage: its result, weights and labels."""
    folder = join(storage, NAME)
    filesystem, labels = open_folder(join(folder, "labels"))
    names = [info.base_name for info in filesystem.get_file_info(pafs.FileSelector(labels))]
    files = ["last.safetensors", *(f"labels/{name}" for name in sorted(names))]
    result = json.loads(read_bytes(join(folder, "result.json")))
    return {"result": result} | {name: read_bytes(join(folder, name)) for name in files}


@dataclass(kw_only=True)
class Scene:
    """A run that is under way, and where its processes are."""

    run: Run
    process: Process  # of the command
    cluster: Cluster | None = None  # started by this process; else the command has its own Ray
    _seen: tuple[float, list[psutil.Process]] = (0.0, [])  # when, and all processes

    def wait_for(self, condition: Callable[[], Any]) -> None:
        """Until it holds; fails where the run ends first."""
        end = time.monotonic() + LIMIT_S
        while not condition():
            assert self.process.poll() is None, self.run.said.read_text()[-2000:]
            assert time.monotonic() < end, "the moment did not come"
            time.sleep(POLL_S)

    def wait_for_round(self, number: int) -> None:
        """Until the rounds before it are done and its extraction begins."""
        name = f"checkpoints/round-{number:04d}"
        self.wait_for(lambda: exists(join(self.run.folder, name)))

    def wait_for_steps(self, number: int) -> None:
        """Until the optimiser steps of a round begin."""
        self.wait_for(lambda: number in self.run.evaluated())

    def strike(self, title: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the next process that works under this title."""
        process = self.catch(title)
        process.send_signal(number)
        with suppress(psutil.NoSuchProcess):
            process.resume()

    def lose_node(self, title: str) -> None:
        """Kill all of the node where a process of this title works; another joins, as with an autoscaler."""
        assert self.cluster
        node = self.node_of(self.catch(title))
        raylet = _raylet(node)
        for process in [*raylet.children(recursive=True), raylet]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.cluster.remove_node(node, allow_graceful=False)
        self.cluster.add_node(num_cpus=1)

    def node_of(self, process: psutil.Process) -> Any:
        """The node of the cluster, other than its head, where a process works."""
        assert self.cluster
        above = {parent.pid for parent in process.parents()}
        (node,) = (n for n in self.cluster.worker_nodes if _raylet(n).pid in above)
        return node

    def catch(self, title: str) -> psutil.Process:
        """The next process that works under this title, stopped, so that it cannot end its work."""
        caught: list[psutil.Process] = []

        def catch_one() -> bool:
            for process in self.at_work(title):
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
                    if not caught and has_title(process, title):
                        caught.append(process)
                    else:
                        process.resume()
            return bool(caught)

        self.wait_for(catch_one)
        return caught[0]

    def at_work(self, title: str) -> list[psutil.Process]:
        """Processes that work under a title, a task's name or an actor's class, in what this process started."""
        if time.monotonic() > self._seen[0] + SEARCH_S:
            self._seen = (time.monotonic(), psutil.Process().children(recursive=True))
        return [process for process in self._seen[1] if has_title(process, title)]


def has_title(process: psutil.Process, title: str) -> bool:
    """Whether a process of Ray works under a title now."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline()).startswith(f"ray::{title}")
    return False


def _raylet(node: Any) -> psutil.Process:
    """The process of a node that is above those of its tasks and actors."""
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


@contextmanager
def cluster_of(nodes: int) -> Iterator[Cluster]:
    """A head for the driver alone, and nodes of one CPU: no two train workers fit on one."""
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()
