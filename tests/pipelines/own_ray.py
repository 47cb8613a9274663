"""A Ray cluster of this machine as `ray start` makes it: ports, folder and token of its own, no process left behind."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.nodes.runtime import one_at_a_time
from tests.pipelines.machines import Machine

LIMIT_S = 240.0  # of a wait; a start takes seconds on an idle machine


@dataclass(frozen=True)
class OwnRay:
    """What a shell needs to use the cluster."""

    environment: dict[str, str]  # for `ray job`; not yet RAY_ADDRESS, which sends a program there
    address: str
    folder: Path
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)  # their `ray start`

    def pids(self, word: str = "") -> list[int]:
        """Processes of the cluster, which all inherit the path of its token; with ``word`` in their command line."""
        found = []
        mark = self.environment["RAY_AUTH_TOKEN_PATH"].encode()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                ours = mark in (entry / "environ").read_bytes()
                if ours and word.encode() in (entry / "cmdline").read_bytes().replace(b"\0", b" "):
                    found.append(int(entry.name))
            except OSError:  # it has ended
                continue
        return found

    def run(self, *words: str) -> str:
        """The output of a command, which must succeed."""
        done = subprocess.run(
            words,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
        return done.stdout


@contextmanager
def own_ray(cpus: int, machine: Machine | None = None) -> Iterator[OwnRay]:
    """A head with ``cpus``, there."""
    with tempfile.TemporaryDirectory(prefix="reid-", dir="/tmp") as name, ExitStack() as stack:
        folder = Path(name)  # short: the path of a socket has at most 107 characters
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        port, dashboard, client = free_ports(3)
        environment = os.environ | {
            "RAY_JOB_STOP_WAIT_TIME_S": "60",  # its own 3 s end by SIGKILL on a busy machine
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        }
        ip = machine.address if machine else "127.0.0.1"
        ray = OwnRay(environment, f"{ip}:{port}", folder)
        stack.callback(end, ray)
        flags = ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--port={port}"]
        flags += [f"--ray-client-server-port={client}"]
        flags += [f"--temp-dir={machine.own if machine else folder / 'ray'}"]
        start(ray, ["--head", f"--num-cpus={cpus}", *flags], machine)
        yield ray


def start(
    ray: OwnRay,
    flags: Sequence[str],
    machine: Machine | None = None,
    command: Sequence[str] = (),
) -> None:
    """A node by ``ray start``, behind ``command`` or on a machine; returns when it runs."""
    agent = ["--dashboard-agent-listen-port=0", "--dashboard-agent-grpc-port=0"]
    memory = ["--object-store-memory=200000000", "--disable-usage-stats"]
    if machine:
        command, flags = machine.boot, [*flags, f"--node-ip-address={machine.address}"]
    path = ray.folder / f"node-{len(ray.nodes)}.log"
    with one_at_a_time(), path.open("ab") as log:
        node = subprocess.Popen(
            [*command, "ray", "start", "--block", *flags, *agent, *memory],
            env=ray.environment,
            stdout=log,
            stderr=log,
        )
        ray.nodes.append(node)
        wait_until(lambda: "Ray runtime started" in path.read_text() or node.poll() is not None)
    assert node.poll() is None, path.read_text()[-2000:]


def end(ray: OwnRay) -> None:
    """End all processes of the cluster; what does not go by itself is killed, and is an error."""
    for pid in ray.pids("ray start --block"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    try:
        wait_until(lambda: not ray.pids(), 60)
    except AssertionError as error:
        names = []
        for pid in ray.pids():
            with suppress(OSError):  # it has just ended
                names.append(Path(f"/proc/{pid}/comm").read_text().strip())
                os.kill(pid, signal.SIGKILL)
        raise AssertionError(f"left behind: {', '.join(names)}") from error


def wait_until(condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Wait for a condition."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing uses."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
