"""What a run leaves beside its checkpoints: config, environment, log, metrics, TensorBoard, result.

The driver is the only writer. Where the storage is a URI, the files are made in a local folder and copied
after every round and at the end.
"""

import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import torch

from pipelines.results.saved_run import of_kind, read_config, read_lines
from reid_core.errors import UsageError
from reid_core.storage import exists, join, open_folder, read_bytes, write_bytes

PACKAGES = (
    "torch",
    "torchvision",
    "torchcodec",
    "ray",
    "numpy",
    "pyarrow",
    "scikit-learn",
    "numba",
)
CODE = ("pipelines", "reid_core", "tune_spaces")
EVALUATION = (
    "round",
    "mAP",
    "mINP",
    "rank1",
    "rank5",
    "rank10",
)  # keys of an evaluation in result.json
logger = logging.getLogger(__name__)


class RunFolder:
    """The files of one run under ``STORAGE/NAME``."""

    def __init__(self, storage: str, name: str) -> None:
        self.path = join(storage if "://" in storage else str(Path(storage).resolve()), name)
        self.remote = "://" in storage
        self.lines: list[dict[str, Any]] = []

    def open(self, config: dict[str, Any], environment: dict[str, Any]) -> None:
        """Start the run, or go on with it where its saved configuration is the same.

        Args:
            config: ``command`` and ``job`` for people, ``identity``: all that changes a number.
            environment: see ``describe_environment``.

        Raises:
            UsageError: a run of this name exists with another configuration; names what differs.
        """
        saved = read_config(self.path)
        if saved is None:
            self.write_json("config.json", config)
        else:
            self._check_same(saved.get("identity", {}), config["identity"])
        self.write_json("environment.json", environment)
        self.local = Path(tempfile.mkdtemp(prefix="reid-run-")) if self.remote else Path(self.path)
        if self.remote:
            self._copy_down("metrics.jsonl", "log.txt")
        self.lines = read_lines(str(self.local))
        self.log = logging.FileHandler(self.local / "log.txt")
        self.log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(self.log)
        for name in ("reid_core", "pipelines"):  # in a notebook nobody else asks for these lines
            logging.getLogger(name).setLevel(logging.INFO)
        from tensorboardX import SummaryWriter  # with it comes boto3

        self.board = SummaryWriter(str(self.local / "tensorboard"))

    def _check_same(self, saved: dict[str, Any], asked: dict[str, Any]) -> None:
        before, now = flatten(saved), flatten(json.loads(json.dumps(asked)))
        differ = [
            f"{key}: saved {before.get(key)!r}, asked {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys(), key=lambda k: (k not in before, k))
            if before.get(key) != now.get(key)
        ]
        if differ:
            raise UsageError(
                f"{self.path} holds a run with another configuration ({'; '.join(differ[:8])}); "
                "choose another --name, or the saved settings to go on with it"
            )

    def check_left_out(self, paths: list[str]) -> None:
        """Keep which images could not be read; a run that goes on must leave out the same ones.

        Raises:
            ValueError: others can be read now than when the run began.
        """
        saved = join(self.path, "left_out.json")
        if not exists(saved):
            self.write_json("left_out.json", paths)
        elif changed := sorted(set(json.loads(read_bytes(saved))) ^ set(paths)):
            raise ValueError(
                f"{self.path}: {len(changed)} images can be read now and could not when the run began, or "
                f"the reverse ({changed[:3]}); repair them or choose another --name"
            )

    def _copy_down(self, *names: str) -> None:
        for name in names:
            if exists(join(self.path, name)):
                (self.local / name).write_bytes(read_bytes(join(self.path, name)))

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file atomically."""
        write_bytes(join(self.path, name), (json.dumps(value, indent=2) + "\n").encode())

    def add(self, kind: str, line: dict[str, Any]) -> None:
        """Add a line of metrics; the last line of a kind and round wins."""
        entry = {"kind": kind, **line, "time": time.time()}
        same = [
            i for i, e in enumerate(self.lines) if (e["kind"], e["round"]) == (kind, line["round"])
        ]
        if same:
            self.lines[same[0]] = entry
        else:
            self.lines.append(entry)
        text = "".join(json.dumps(e) + "\n" for e in self.lines)
        write_bytes(self.local / "metrics.jsonl", text.encode())
        for name, value in line.items():
            if isinstance(value, int | float) and name != "round":
                self.board.add_scalar(f"{kind}/{name}", value, line["round"])
        self.sync()

    def evaluations(self) -> list[dict[str, Any]]:
        """The evaluations so far, by round."""
        return of_kind(self.lines, "evaluation")

    def sync(self) -> None:
        """Copy log, metrics and TensorBoard to the storage where it is remote."""
        self.log.flush()
        self.board.flush()
        if self.remote:
            filesystem, inner = open_folder(self.path)
            pafs.copy_files(
                str(self.local), inner, source_filesystem=pafs.LocalFileSystem(),
                destination_filesystem=filesystem,
            )  # fmt: skip

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        if error is None:
            self.close()
            return
        self.log.handle(_reason(error))  # the terminal gets it from the command line
        try:
            self.close()
        except OSError as more:  # the run has its own error to tell
            logger.warning("%s: the last lines were not copied (%s)", self.path, more)

    def close(self) -> None:
        """End the log and the TensorBoard file."""
        try:
            self.sync()
        finally:
            self.board.close()
            logging.getLogger().removeHandler(self.log)
            self.log.close()
            if self.remote:
                shutil.rmtree(self.local)


def _reason(error: BaseException) -> logging.LogRecord:
    """Why a run ended, as a line of its log; with the stack where the error is not one that we tell in a sentence."""
    told = {"name": __name__, "levelno": logging.ERROR, "levelname": "ERROR"}
    if isinstance(error, KeyboardInterrupt):
        return logging.makeLogRecord({**told, "msg": "ended: stopped"})
    if isinstance(error, ValueError | OSError) and str(error):
        return logging.makeLogRecord({**told, "msg": "ended: %s", "args": (str(error),)})
    stack = (type(error), error, error.__traceback__)
    return logging.makeLogRecord({**told, "msg": "ended: %r", "args": (error,), "exc_info": stack})


def summarise(evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """``result.json``: the evaluations ``first``, ``last``, ``best_label_free`` and ``best_on_test``.

    Without a label-free score, ``best_label_free`` is the first one. ``best_on_test`` is chosen on the
    test set and no fair figure; the other three never look at it.
    """
    rows = [{name: e.get(name) for name in EVALUATION} for e in evaluations]
    scores = [e["label_free"] for e in evaluations]
    free = max(range(len(rows)), key=lambda i: -1.0 if scores[i] is None else scores[i])
    test = max(range(len(rows)), key=lambda i: rows[i]["mAP"] or 0.0)
    return {
        "first": rows[0] if rows[0]["round"] == 0 else dict.fromkeys(EVALUATION),
        "last": rows[-1],
        "best_label_free": rows[free],
        "best_on_test": rows[test],
    }


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as ``{"a.b": value}``."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat = {}
    for name, sub in tree.items():
        flat |= flatten(sub, f"{prefix}.{name}".lstrip("."))
    return flat


def describe_environment(**more: Any) -> dict[str, Any]:
    """Versions, hardware and code; no environment variables, so no secrets.

    ``revision`` is git's, null where the code came without ``.git`` as in a job; ``code`` is the same in both.
    """
    try:
        root = Path(__file__).parents[2]
        git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
        revision = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = None
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: version(name) for name in PACKAGES},
        "revision": revision,
        "code": code_fingerprint(),
        **more,
    }


def code_fingerprint() -> str:
    """32 hex digits over the Python files of the three packages."""
    root = Path(__file__).parents[2]
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(chain.from_iterable((root / name).rglob("*.py") for name in CODE)):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def settings(job: Any) -> dict[str, Any]:
    """A frozen dataclass as plain JSON values."""
    return json.loads(json.dumps(asdict(job)))
