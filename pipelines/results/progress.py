"""The driver's ear: events of rank 0 become progress bars, log lines and metrics of the run folder."""

import logging
import math
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty
from typing import Any

import pyarrow as pa
from ray.exceptions import RayError
from ray.util.queue import Queue
from tqdm import tqdm

from pipelines.results.run_folder import RunFolder
from reid_core.labelling.quality import clustering_quality
from reid_core.labels import Labels
from reid_core.tables import LABELS, read_table

END_S = 300.0  # to write what is left when the run ends
QUIET_S = 300.0  # without an event, say so

logger = logging.getLogger(__name__)


class _Forward(logging.Handler):
    """Sends log records to the driver."""

    def __init__(self, events: Queue) -> None:
        super().__init__(logging.INFO)
        self.events = events

    def emit(self, record: logging.LogRecord) -> None:
        event = {"kind": "log", "message": record.getMessage(), "level": record.levelno}
        try:
            self.events.put(event)
        except RayError:  # the driver has gone; a lost line is no reason to lose the work
            self.handleError(record)


def forward_logs(events: Queue | None) -> None:
    """Send what we log in this process to the driver, or no longer; Ray's own lines stay in its log files."""
    for name in ("reid_core", "pipelines"):
        ours = logging.getLogger(name)
        ours.setLevel(logging.INFO)
        ours.handlers = [] if events is None else [_Forward(events)]


class Listener:
    """Handles events in a thread of the driver until the queue gets ``None``.

    Where ids are known, a second thread compares every round's labels with them; training never sees that.
    """

    def __init__(self, events: Queue, folder: RunFolder, rounds: int, images: pa.Table) -> None:
        self.events = events
        self.folder = folder
        self.rounds = rounds
        self.pid = images.sort_by("image_id").column("pid").fill_null(-1).to_numpy()
        self.judge = ThreadPoolExecutor(1)
        self.judged: deque[Future[dict[str, float]]] = deque()
        self.bar: tqdm | None = None
        self.said: set[str] = set()
        self.failure: Exception | None = None
        self.thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> "Listener":
        self.thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.events.put(None)
        self.thread.join(timeout=END_S)
        self._end_bar()
        if self.thread.is_alive():
            self.failure = self.failure or TimeoutError(
                f"the run folder took no events for {END_S:.0f} s; look at its storage"
            )
        else:
            self.judge.shutdown()
            self._add_quality()
        if self.failure and kind is None:  # else the run has its own error to tell
            raise self.failure

    def _listen(self) -> None:
        while (event := self._next()) is not None:
            try:
                getattr(self, f"on_{event.pop('kind')}")(**event)
                self._add_quality()
            except Exception as error:  # noqa: BLE001  a full disk, say
                self.failure = self.failure or error  # raised in the driver when the run ends
                logger.error("the run folder cannot be written: %s", error)

    def _next(self) -> dict[str, Any] | None:
        begin = time.monotonic()
        while True:
            with suppress(Empty):
                return self.events.get(timeout=QUIET_S)
            logger.info(
                "no word from the workers for %.0f s: they start, wait for room, or have long work to do; "
                "see `ray status`",
                time.monotonic() - begin,
            )

    def on_log(self, message: str, level: int = logging.INFO) -> None:
        if level > logging.INFO or message not in self.said:  # the same choice every round: once
            self.said.add(message)
            logger.log(level, message)

    def on_stage(self, name: str, round: int) -> None:
        self._new_bar(f"round {round}/{self.rounds} {name}", None)

    def on_steps(self, round: int, done: int, of: int, terms: dict[str, float]) -> None:
        if self.bar is None or self.bar.total != of:
            self._new_bar(f"round {round}/{self.rounds} train", of)
        assert self.bar is not None
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in terms.items()}, refresh=False)
        self.bar.update(done - self.bar.n)
        if done == of:
            self._end_bar()

    def on_labels(self, round: int, path: str) -> None:
        if (self.pid > 0).any():
            self.judged.append(self.judge.submit(self._quality, round, path))

    def _quality(self, round: int, path: str) -> dict[str, float]:
        known = self.pid > 0
        label = Labels.from_table(read_table(path, LABELS), path).label[:, -1]
        scores = clustering_quality(label[known], self.pid[known])
        return {"round": round, **{k: v for k, v in scores.items() if math.isfinite(v)}}

    def _add_quality(self) -> None:
        while self.judged and self.judged[0].done():
            done = self.judged.popleft()
            if error := done.exception():
                logger.warning("the labels could not be compared with the ids: %s", error)
            else:
                self._add("quality", done.result())

    def _add(self, kind: str, line: dict[str, Any]) -> None:
        self.folder.add(kind, line)
        if isinstance(self.failure, OSError):  # the file was written whole, with what failed before
            self.failure = None

    def on_round(self, round: int, **metrics: float) -> None:
        self._end_bar()
        loss = ", ".join(f"{k} {v:.3f}" for k, v in metrics.items() if k.startswith("loss_"))
        logger.info(
            "round %d: %d clusters, %.1f %% outliers, %s, label %.1f s, train %.1f s",
            round,
            metrics["clusters"],
            100 * metrics["outliers"],
            loss,
            metrics["seconds_label"],
            metrics["seconds_train"],
        )
        self._add("round", {"round": round, **metrics})

    def on_evaluation(self, round: int, **result: Any) -> None:
        self._end_bar()
        accuracy = result.get("mAP")
        shown = (
            "no ids" if accuracy is None else f"mAP {accuracy:.1%}, rank-1 {result['rank1']:.1%}"
        )
        more = "".join(
            f", {name.removeprefix('mAP_')} mAP {value:.1%}"
            for name, value in result.items()
            if name.startswith("mAP_") and value is not None
        )
        free = result["label_free"]
        score = "" if free is None else f", label-free score {free:.3f}"
        logger.info("after %d rounds: %s%s%s", round, shown, more, score)
        self._add("evaluation", {"round": round, **result})

    def _new_bar(self, text: str, total: int | None) -> None:
        self._end_bar()
        self.bar = tqdm(total=total, desc=text, leave=False, dynamic_ncols=True, disable=None)

    def _end_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
