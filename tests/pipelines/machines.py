"""Machines apart on this one: each has an address, shared memory and a folder of its own; a switch joins them."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SUBNET = "10.213.7"  # seen by the machines alone


@dataclass(frozen=True)
class Machine:
    """What starts a command there."""

    network: str  # namespace
    switch: str  # namespace of the other end of its cable
    cable: str
    address: str
    own: Path  # this folder is empty there and nobody else sees it

    @property
    def boot(self) -> list[str]:
        """For its first command, which gets the machine's files."""
        mounts = f'mount -t tmpfs none {self.own} && mount -t tmpfs none /dev/shm && exec "$@"'
        return ["ip", "netns", "exec", self.network, "sh", "-c", mounts, "sh"]

    def beside(self, process: subprocess.Popen[bytes]) -> list[str]:
        """For a command that sees the files of a first one."""
        return ["nsenter", f"--target={process.pid}", "--net", "--mount", f"--wdns={Path.cwd()}"]

    def has(self, pid: int) -> bool:
        """Whether a process works there."""
        there = Path("/run/netns", self.network).stat()
        return os.path.samestat(there, Path(f"/proc/{pid}/ns/net").stat())

    def unplug(self) -> None:
        """Nothing reaches it any more; its processes live on."""
        _ip("-n", self.switch, "link", "set", self.cable, "down")

    def power_off(self) -> None:
        """All its processes end at once."""
        for pid in subprocess.check_output(["ip", "netns", "pids", self.network]).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


@contextmanager
def machines(count: int, own: Path) -> Iterator[list[Machine]]:
    """Machines with addresses in :data:`SUBNET`, gone afterwards with their cables; asks for root."""
    with ExitStack() as stack:
        switch = _network("switch", stack)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        yield [_machine(number, switch, own, stack) for number in range(1, count + 1)]


def can_be_made() -> bool:
    """Whether this process may make machines."""
    try:
        with machines(1, Path.cwd()) as (machine,):
            return subprocess.run([*machine.boot, "true"], check=False).returncode == 0
    except (OSError, subprocess.CalledProcessError):
        return False


def _machine(number: int, switch: str, own: Path, stack: ExitStack) -> Machine:
    name, cable, address = _network(str(number), stack), f"port{number}", f"{SUBNET}.{number}"
    _ip("-n", switch, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("-n", switch, "link", "set", cable, "master", "bridge", "up")
    _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
    for link in ("lo", "eth0"):
        _ip("-n", name, "link", "set", link, "up")
    return Machine(network=name, switch=switch, cable=cable, address=address, own=own)


def _network(name: str, stack: ExitStack) -> str:
    """A namespace of this process, empty."""
    name = f"reid-{os.getpid()}-{name}"
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "delete", name)
    return name


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
