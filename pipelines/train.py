"""``reid train METHOD``: learn an embedding; the same command goes on where it stopped."""

from collections.abc import Sequence
from typing import Any

import tyro

from pipelines.results.presets import preset_lines
from pipelines.run.driver import run
from pipelines.run.job import TrainJob
from reid_core import method as contract
from reid_core.errors import UsageError


def parse(argv: Sequence[str]) -> tuple[str, TrainJob[Any] | None]:
    """METHOD and the job, whose flags default to the preset that was asked for; no job for ``--list``."""
    rest = list(argv)
    asked = take(rest, "--preset")
    if not rest or rest[0].startswith("-"):
        usage = f"reid train METHOD [--preset NAME | --list] [flags]; methods: {', '.join(contract.names())}"
        if rest[:1] in (["-h"], ["--help"]):
            print(f"usage: {usage}\nreid train METHOD --help explains every flag")  # noqa: T201
            raise SystemExit(0)
        raise UsageError(f"usage: {usage}")
    name = rest.pop(0)
    method = contract.load(name)
    if "--list" in rest:
        return name, None
    preset = asked or "market1501"
    if preset not in method.PRESETS:
        raise UsageError(f"{name} has no preset {preset!r}; it has {', '.join(method.PRESETS)}")
    default = TrainJob(method=method.PRESETS[preset].config, name=f"{name}-{preset}")
    job = tyro.cli(
        TrainJob[method.Config],  # type: ignore[name-defined]
        default=default,
        args=rest,
        prog=f"reid train {name} [--preset {'|'.join(method.PRESETS)}]",
    )
    return name, job


def take(argv: list[str], flag: str) -> str | None:
    """Remove ``flag VALUE`` or ``flag=VALUE`` from the words; the value."""
    for place, word in enumerate(argv):
        if word == flag and place + 1 < len(argv):
            del argv[place]
            return argv.pop(place)
        if word.startswith(f"{flag}="):
            return argv.pop(place).partition("=")[2]
    return None


def main(argv: Sequence[str]) -> int:
    """Entry of ``reid train``."""
    name, job = parse(argv)
    if job is None:
        for line in preset_lines(name):
            print(line)  # noqa: T201
        return 0
    run(name, job)
    return 0
