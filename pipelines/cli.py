"""The command line: one verb, one file; errors are one message. Exit code 0 done, 1 failed, 2 wrong use."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TextIO

from reid_core.errors import UsageError

VERBS = {
    "demo": "synthetic data, a small network, the whole loop in minutes",
    "scan": "what is in a data folder, and what is wrong with it",
    "synth": "draw a synthetic data set",
    "extract": "features of images, as a table",
    "cluster": "pseudo labels of a feature table",
    "plan": "time, memory and disk of every stage, before anything starts",
    "labels": "what became of the clusters between two label tables: reid labels diff A B",
    "train": "learn an embedding without labels: reid train METHOD",
    "sweep": "the settings of a method, on stored features or by training: reid sweep METHOD --space NAME",
    "evaluate": "mAP and CMC of a run, a checkpoint or feature tables",
    "picture": "what a run learnt, as a PNG: reid picture RUN --what hierarchy|tsne|quality|matches",
}


GOES_ON = ("demo", "train", "sweep")  # verbs that go on where they stopped


class _Lines(logging.StreamHandler[TextIO]):
    """Log lines on the terminal, above a progress bar where one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=self.stream)
        except OSError:  # the reader of a pipe has gone; the work has not
            self.handleError(record)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``reid VERB ...`` and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_Lines(sys.stderr)])
    logging.getLogger("faiss").setLevel(logging.WARNING)
    if argv is None:  # the program, and not a function of another one
        signal.signal(signal.SIGTERM, _stop)
    try:
        code = _run(words)
        sys.stdout.flush()
    except SystemExit as done:  # tyro has printed its help or its error
        code = int(done.code or 0)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except UsageError as error:
        _say(f"reid: {error}")
        code = 2
    except (ValueError, OSError, TimeoutError) as error:
        logging.getLogger(__name__).debug("failed", exc_info=error)
        _say(f"reid: {error}")
        code = 1
    except KeyboardInterrupt:
        more = (
            "; the same command goes on from the last round"
            if words[:1] and words[0] in GOES_ON
            else ""
        )
        _say(f"reid: stopped{more}")
        code = 1
    return code


def _say(text: str) -> None:
    """To the terminal, if anybody still reads it."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201


def _stop(*_: object) -> None:
    """SIGTERM ends a command like Ctrl-C."""
    raise KeyboardInterrupt


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(usage())  # noqa: T201
        return 0 if words else 2
    if words[0] == "--version":
        print(f"reid {_version()}")  # noqa: T201
        return 0
    if words[0] not in VERBS:
        raise UsageError(f"no verb {words[0]!r}\n{usage()}")
    if not {"-h", "--help", "--list"} & set(words):
        logging.getLogger(__name__).info("reid %s", words[0])  # its packages take seconds to load
    return import_module(f"pipelines.{words[0]}").main(words[1:])


def usage() -> str:
    """The verbs, one a line."""
    lines = [f"  {verb:<10}{about}" for verb, about in VERBS.items()]
    return "\n".join(["usage: reid VERB [flags]; reid VERB --help explains them", *lines])


def _version() -> str:
    """That of the installed distribution; a job brings the code alone, with pyproject.toml beside it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("reid-ray")
    except PackageNotFoundError:
        import tomllib

        project = Path(__file__).parents[1] / "pyproject.toml"
        return tomllib.loads(project.read_text())["project"]["version"]
