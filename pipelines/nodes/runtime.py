"""Ray for a command: join a cluster, or start one on this machine, and leave it at the end."""

import logging
import os
import secrets
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from filelock import FileLock
from ray.exceptions import RayError, RayTaskError

from reid_core.errors import UsageError

STARTS = 16  # processes that Ray starts at once on one machine; it warns of five times as many
LOCAL = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes this machine away with a notice
    "RAY_worker_maximum_startup_concurrency": str(STARTS),
}

logger = logging.getLogger(__name__)


@contextmanager
def ray_session(*, dashboard: bool = False) -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names, or start a local one; leave it at the end.

    Args:
        dashboard: start that of a local Ray as well, for its state API: placement groups of a trial that Tune
            ended are freed by it.
    """
    started = not ray.is_initialized()
    if started:
        _start(dashboard)
        signal.signal(signal.SIGTERM, _stop)  # after Ray's own handler, which prints a stack
    try:
        yield
    except RayTaskError:  # is the error of the task, too
        raise
    except RayError as error:
        raise OSError(
            f"Ray lost a task or an actor ({str(error).strip().splitlines()[-1]}); the same command goes on"
        ) from error
    finally:
        if started:
            ray.shutdown()


def _stop(*_: object) -> None:
    """SIGTERM, as of `ray job stop`, ends a command like Ctrl-C."""
    raise KeyboardInterrupt


def _start(dashboard: bool) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS")
    if address:
        logger.info("joining the Ray cluster at %s", address)
        try:
            ray.init(address=address, **quiet)
        except Exception as error:  # Ray has no class for a cluster that does not answer
            raise UsageError(
                f"cannot join the Ray cluster at RAY_ADDRESS={address} ({_reason(error)}). It must run, with the Ray "
                "of this environment, and want the token of this shell: export RAY_AUTH_MODE=token "
                "RAY_AUTH_TOKEN_PATH=FILE with the file that `ray start` had, or RAY_AUTH_MODE=disabled where it had "
                "none. To run on this machine alone: unset RAY_ADDRESS"
            ) from error
        return
    logger.info("starting Ray on this machine")
    for name, value in LOCAL.items():
        os.environ.setdefault(name, value)
    try:  # "local": never by chance the local cluster of another run on this machine
        with one_at_a_time():
            make_token()
            ray.init(
                address="local",
                num_cpus=max(2, len(os.sched_getaffinity(0))),
                include_dashboard=dashboard,
                dashboard_port=0,
                **quiet,
            )
    except Exception as error:  # Ray has no class for a node that takes too long to start
        raise OSError(
            f"cannot start Ray on this machine ({_reason(error)}). Where it is busy: try again, or without Ray by "
            "--local. Without a token: export RAY_AUTH_TOKEN_PATH=FILE with one that is there, or unset RAY_AUTH_MODE "
            "and RAY_AUTH_TOKEN_PATH"
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).partition(". ")[0]


def one_at_a_time() -> FileLock:
    """Held while a Ray starts on this machine: two that start at once may take the same ports."""
    return FileLock(Path(tempfile.gettempdir()) / f"reid-ray-start-{os.getuid()}.lock")


def make_token() -> None:
    """The token file that Ray would make itself, but for its owner alone to read."""
    told = os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    path = Path.home() / ".ray" / "auth_token"
    if os.environ.get("RAY_AUTH_MODE") == "token" and not told and not path.exists():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32))
