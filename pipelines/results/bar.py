"""What is going on: one moving line on a terminal, a line now and then where the output goes to a file."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

FIRST_S = 5.0  # of a piece of work, before the first line; between lines it grows with the time that has passed
GROWTH = 0.1
WAITING = "{desc} {elapsed}"  # where nothing is counted

Item = TypeVar("Item")
logger = logging.getLogger(__name__)


class Bar:
    """Progress of one piece of work.

    Args:
        text: what is done, such as ``reading images``.
        total: of what is counted; 0 where nothing is.
    """

    every_s = 1.0  # how often ``tick`` is to be called while nothing comes

    def __init__(self, text: str, total: int = 0) -> None:
        self.text, self.total, self.done = text, total, 0
        self.began = self.said = self.moved = time.monotonic()
        self.bar = tqdm(
            total=total or None,
            desc=text,
            leave=False,
            dynamic_ncols=True,
            disable=None,  # where it is no terminal
            bar_format=None if total else WAITING,
        )
        self.lines = bool(self.bar.disable)
        self.closed = False

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def quiet_s(self) -> float:
        """Seconds since something was done."""
        return time.monotonic() - self.moved

    def update(self, done: int, **shown: Any) -> None:
        """So many more are done; ``shown`` are figures beside the bar."""
        if shown:
            self.bar.set_postfix(shown, refresh=False)
        self.bar.update(done)
        self.done += done
        if done:
            self.moved = time.monotonic()
        self.tick()

    def tick(self) -> None:
        """Show that time passes."""
        now = time.monotonic()
        if self.closed:
            return
        if not self.lines:
            self.bar.refresh()
        elif now - self.said > max(FIRST_S, GROWTH * (now - self.began)):
            self.said = now
            count = f": {self.done} of {self.total}" if self.total else ""
            logger.info("%s%s (%.0f s)", self.text, count, now - self.began)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each counted when the next is asked for."""
        for item in items:
            yield item
            self.update(1)

    def close(self) -> None:
        """End the line."""
        self.closed = True
        self.bar.close()
