"""What a Ray task does before its own work: see its GPU alone, send its log lines to the driver. Imports little."""

import logging
import os
from typing import Any, Protocol


class Events(Protocol):
    """A queue of events on their way to the driver."""

    def put(self, item: Any) -> None: ...


class Forward(logging.Handler):
    """Sends log records to the driver."""

    def __init__(self, events: Events) -> None:
        super().__init__(logging.INFO)
        self.events = events

    def emit(self, record: logging.LogRecord) -> None:
        event = {"kind": "log", "message": record.getMessage(), "level": record.levelno}
        try:
            self.events.put(event)
        except Exception:  # noqa: BLE001  the driver has gone; a lost line is no reason to lose the work
            self.handleError(record)


def forward_logs(events: Events | None) -> None:
    """Send what we log in this process to the driver, or no longer; Ray's own lines stay in its log files."""
    for name in ("reid_core", "pipelines"):
        ours = logging.getLogger(name)
        ours.setLevel(logging.INFO)
        ours.handlers = [] if events is None else [Forward(events)]


def hide_other_gpus() -> None:
    """In a Ray task that got no GPU: see none. Ray itself shows it all of the node's."""
    import ray

    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
