"""What a run folder says of the run, for all that read one: its settings, metrics, evaluations, weights."""

import json
from dataclasses import dataclass
from typing import Any

from reid_core.errors import UsageError
from reid_core.storage import exists, join, read_bytes


@dataclass(frozen=True)
class SavedRun:
    """A run as its folder tells it."""

    folder: str  # path or URI
    method: str  # its name
    job: dict[str, Any]  # settings of its TrainJob
    lines: list[dict[str, Any]]  # of metrics.jsonl

    @classmethod
    def open(cls, folder: str) -> "SavedRun":
        """Read the settings and metrics of a run.

        Raises:
            UsageError: no run lies there.
            ValueError: a file of it is damaged.
        """
        config = read_config(folder)
        if config is None:
            raise UsageError(
                f"{folder}: no run lies here (config.json is missing); give STORAGE/NAME of `reid train`"
            )
        try:
            name, job = config["identity"]["method_name"], config["job"]
        except (KeyError, TypeError) as error:
            raise UsageError(
                f"{folder}: config.json is not that of a run; give STORAGE/NAME of `reid train`, or "
                "STORAGE/NAME/TRIAL of a sweep"
            ) from error
        return cls(folder, name, job, read_lines(folder))

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The lines of one kind (``round``, ``evaluation``, ``quality``), by round."""
        return of_kind(self.lines, kind)

    @property
    def evaluated(self) -> int:
        """The rounds before the last evaluation, which are those before ``last.safetensors``.

        Raises:
            UsageError: there is none yet.
        """
        found = self.of_kind("evaluation")
        if not found:
            raise UsageError(f"{self.folder}: no evaluation yet; let the run go on")
        return found[-1]["round"]

    def weights(self, name: str = "last") -> str:
        """The file of the ``last``, ``best_label_free`` or ``best_on_test`` weights.

        Raises:
            UsageError: it is not there yet.
        """
        path = join(self.folder, f"{name}.safetensors")
        if not exists(path):
            raise UsageError(
                f"{self.folder}: no evaluation yet, so {name}.safetensors is missing; let it go on"
            )
        return path

    @property
    def result(self) -> dict[str, Any] | None:
        """``result.json``; None until the run has ended."""
        return _read_json(join(self.folder, "result.json"))


def of_kind(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The lines of metrics of one kind, by round."""
    return sorted((e for e in lines if e["kind"] == kind), key=lambda e: e["round"])


def read_config(folder: str) -> dict[str, Any] | None:
    """``config.json`` of a run or a sweep; None where there is none."""
    return _read_json(join(folder, "config.json"))


def read_lines(folder: str) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; none where there is no such file yet.

    Raises:
        ValueError: a line is damaged.
    """
    path = join(folder, "metrics.jsonl")
    text = read_bytes(path).decode(errors="replace") if exists(path) else ""
    return [_parsed(line, f"{path}, line {n}") for n, line in enumerate(text.splitlines(), 1)]


def _read_json(path: str) -> Any:
    return _parsed(read_bytes(path).decode(errors="replace"), path) if exists(path) else None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"{where}: no JSON ({error}); restore the file, or begin another --name"
        ) from error
