"""Where the independent pieces of the label stage run: here one after the other, or elsewhere."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from reid_core.hardware import has_gpu


class Tasks(Protocol):
    """Runs functions; a reference stands for a value that may lie on another machine."""

    @property
    def gpu(self) -> bool:
        """Whether a task can get a GPU."""
        ...

    def put(self, value: Any) -> Any:
        """A reference to ``value``, to be passed to several tasks."""

    def submit(self, function: Callable[..., Any], *args: Any, gpu: bool = False) -> Any:
        """A reference to ``function(*args)``; references among ``args`` become their values.

        With ``gpu`` it gets a GPU if there are any.
        """

    def wait(self, references: Sequence[Any], what: str) -> None:
        """Return when all are there; ``what`` they are names the progress bar."""

    def get(self, references: Sequence[Any]) -> list[Any]:
        """The values, in the order of the references; waits for them."""
        ...


class InProcess:
    """Runs every task at once, in this process; a reference is the value itself."""

    @property
    def gpu(self) -> bool:
        return has_gpu()

    def put(self, value: Any) -> Any:
        return value

    def submit(self, function: Callable[..., Any], *args: Any, gpu: bool = False) -> Any:
        return function(*args)

    def wait(self, references: Sequence[Any], what: str) -> None:
        pass

    def get(self, references: Sequence[Any]) -> list[Any]:
        return list(references)
