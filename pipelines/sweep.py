"""``reid sweep METHOD --space NAME``: the settings of a method, swept on stored features or by training."""

from collections.abc import Sequence
from typing import Any

import tyro

from pipelines.run.job import TrainJob
from pipelines.sweeps import labelling, training
from pipelines.sweeps.job import TrainingSweep
from pipelines.sweeps.labelling import LabellingSweep
from pipelines.sweeps.spaces import Space, find_space, listed
from pipelines.train import take
from reid_core import method as contract
from reid_core.errors import UsageError

USAGE = "reid sweep METHOD --space labelling|training|NAME [--preset NAME] [flags]"
HELP = (["-h"], ["--help"])


def parse(argv: Sequence[str]) -> tuple[str, str, Space, LabellingSweep | TrainingSweep[Any]]:
    """METHOD, the name of the space, the space and the sweep, whose flags depend on the space."""
    rest = list(argv)
    asked, preset = take(rest, "--space"), take(rest, "--preset") or "market1501"
    if not rest or rest[0].startswith("-"):
        usage = f"usage: {USAGE}; methods: {', '.join(contract.names())}"
        raise _help(usage) if rest[:1] in HELP else UsageError(usage)
    name = rest.pop(0)
    method = contract.load(name)
    if not asked and rest[:1] in HELP:
        raise _help(f"usage: {USAGE}\n{name} has{listed(name)}")
    title, space = find_space(name, asked or "")
    prog = f"reid sweep {name} --space {title}"
    if title == "labelling":
        stored = labelling.default(name, space)
        return name, title, space, tyro.cli(LabellingSweep, default=stored, args=rest, prog=prog)
    if preset not in method.PRESETS:
        raise UsageError(f"{name} has no preset {preset!r}; it has {', '.join(method.PRESETS)}")
    job = TrainJob(method=method.PRESETS[preset].config, name=f"{name}-{preset}-{title}")
    trained = tyro.cli(
        TrainingSweep[method.Config],  # type: ignore[name-defined]
        default=TrainingSweep(run=job),
        args=rest,
        prog=f"{prog} [--preset {'|'.join(method.PRESETS)}]",
    )
    return name, title, space, trained


def _help(text: str) -> SystemExit:
    print(f"{text}\nreid sweep METHOD --space NAME --help explains every flag")  # noqa: T201
    return SystemExit(0)


def main(argv: Sequence[str]) -> int:
    """Entry of ``reid sweep``."""
    name, title, space, sweep = parse(argv)
    if isinstance(sweep, LabellingSweep):
        labelling.run(sweep)
    else:
        training.run(name, title, space, sweep)
    return 0
