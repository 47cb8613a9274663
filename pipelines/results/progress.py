"""The driver's ear: events of rank 0 become progress bars, log lines and metrics of the run folder."""

import logging
import math
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty
from typing import Any, Protocol

import pyarrow as pa

from pipelines.results.bar import Bar
from pipelines.results.run_folder import RunFolder
from reid_core.labelling.quality import clustering_quality
from reid_core.labels import Labels
from reid_core.tables import LABELS, read_table

END_S = 300.0  # to write what is left when the run ends
QUIET_S = 300.0  # without an event, say what may be the cause

logger = logging.getLogger(__name__)


class Events(Protocol):
    """A queue, of Ray or of this process."""

    def put(self, item: Any) -> None: ...

    def get(self, *, timeout: float) -> Any: ...


class Listener:
    """Handles events in a thread of the driver until the queue gets ``None``.

    ``start`` is what is done before the first event. ``silence`` (with ``%.0f`` for seconds) is said where none comes
    for ``QUIET_S``; empty where the rounds run in this process.

    Where ids are known, a second thread compares every round's labels with them; training never sees that.
    """

    def __init__(
        self,
        events: Events,
        folder: RunFolder,
        rounds: int,
        images: pa.Table,
        *,
        start: str = "starting",
        silence: str = "",
    ) -> None:
        self.events = events
        self.folder = folder
        self.rounds = rounds
        self.pid = images.sort_by("image_id").column("pid").fill_null(-1).to_numpy()
        self.judge = ThreadPoolExecutor(1)
        self.judged: deque[Future[dict[str, float]]] = deque()
        self.silence = silence
        self.bar = Bar(start)
        self.said: set[str] = set()
        self.failure: Exception | None = None
        self.thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> "Listener":
        self.thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.events.put(None)
        self.thread.join(timeout=END_S)
        self.bar.close()
        if self.thread.is_alive():
            self.failure = self.failure or TimeoutError(
                f"the run folder took no events for {END_S:.0f} s; look at its storage"
            )
        else:
            self.judge.shutdown()
            self._add_last_quality(kind is None)
        if self.failure and kind is None:  # else the run has its own error to tell
            raise self.failure

    def _add_last_quality(self, whole: bool) -> None:
        try:
            self._add_quality()
        except OSError as error:
            if whole:  # else the run has its own error to tell
                raise
            logger.error("the run folder cannot be written: %s", error)

    def _listen(self) -> None:
        while (event := self._next()) is not None:
            try:
                getattr(self, f"on_{event.pop('kind')}")(**event)
                self._add_quality()
            except Exception as error:  # noqa: BLE001  a full disk, say
                self.failure = self.failure or error  # raised in the driver when the run ends
                logger.error("the run folder cannot be written: %s", error)

    def _next(self) -> dict[str, Any] | None:
        said = False
        while True:
            with suppress(Empty):
                return self.events.get(timeout=self.bar.every_s)
            if self.silence or self.bar.lines:  # else the terminal may be a debugger's
                self.bar.tick()
            if self.silence and self.bar.quiet_s > QUIET_S and not said:
                said = True
                logger.info(self.silence, self.bar.quiet_s)

    def on_log(self, message: str, level: int = logging.INFO) -> None:
        if level > logging.INFO or message not in self.said:  # the same choice every round: once
            self.said.add(message)
            logger.log(level, message)

    def on_stage(self, text: str, total: int = 0) -> None:
        self._new_bar(text, total)

    def on_done(self, done: int) -> None:
        self.bar.update(done - self.bar.done)

    def on_steps(self, round: int, done: int, of: int, terms: dict[str, float]) -> None:
        text = f"round {round} of {self.rounds}, steps"
        if self.bar.text != text or self.bar.closed:
            self._new_bar(text, of)
        shown = {name: f"{value:.3f}" for name, value in terms.items()}
        self.bar.update(done - self.bar.done, **shown)

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
        self.bar.close()
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
        self._new_bar("saving")

    def on_evaluation(self, round: int, **result: Any) -> None:
        self.bar.close()
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

    def _new_bar(self, text: str, total: int = 0) -> None:
        self.bar.close()
        self.bar = Bar(text, total)
