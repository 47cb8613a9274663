"""``reid sweep METHOD --space NAME``: the settings of a method, swept on stored features or by training."""

import argparse
from collections.abc import Sequence
from typing import Any

import tyro

from pipelines import sweep_labelling, sweep_training
from pipelines.sweep_job import TrainingSweep
from pipelines.sweep_labelling import LabellingSweep
from pipelines.sweep_spaces import Space, find_space
from pipelines.train import TrainJob
from reid_core import method as contract
from reid_core.errors import UsageError

USAGE = "reid sweep METHOD --space labelling|training|NAME [--preset NAME] [flags]"


def parse(argv: Sequence[str]) -> tuple[str, str, Space, LabellingSweep | TrainingSweep[Any]]:
    """METHOD, the name of the space, the space and the sweep, whose flags depend on the space."""
    if argv[:1] in (["-h"], ["--help"]):
        print(f"usage: {USAGE}\nreid sweep METHOD --space NAME --help explains every flag")  # noqa: T201
        raise SystemExit(0)
    if not argv or argv[0].startswith("-"):
        raise UsageError(f"usage: {USAGE}; methods: {', '.join(contract.names())}")
    name, *rest = argv
    method = contract.load(name)
    first = argparse.ArgumentParser(prog=f"reid sweep {name}", add_help=False, allow_abbrev=False)
    first.add_argument("--space", default="")
    first.add_argument("--preset", default="market1501")
    asked, rest = first.parse_known_args(rest)
    title, space = find_space(name, asked.space)
    prog = f"reid sweep {name} --space {title}"
    if title == "labelling":
        labelling = sweep_labelling.default(name, space)
        return name, title, space, tyro.cli(LabellingSweep, default=labelling, args=rest, prog=prog)
    if asked.preset not in method.PRESETS:
        raise UsageError(
            f"{name} has no preset {asked.preset!r}; it has {', '.join(method.PRESETS)}"
        )
    job = TrainJob(
        method=method.PRESETS[asked.preset].config, name=f"{name}-{asked.preset}-{title}"
    )
    training = tyro.cli(
        TrainingSweep[method.Config],  # type: ignore[name-defined]
        default=TrainingSweep(run=job),
        args=rest,
        prog=f"{prog} [--preset {'|'.join(method.PRESETS)}]",
    )
    return name, title, space, training


def main(argv: Sequence[str]) -> int:
    """Entry of ``reid sweep``."""
    name, title, space, sweep = parse(argv)
    if isinstance(sweep, LabellingSweep):
        sweep_labelling.run(sweep)
    else:
        sweep_training.run(name, title, space, sweep)
    return 0
