"""The function that Ray Train runs in every rank; light, since Ray's controller unpickles it as well."""

from typing import Any

import ray


def worker(config: dict[str, Any]) -> dict[str, str]:
    """Fetch the RunSpec that ``config["spec"][0]`` refers to and run its rounds.

    Returns:
        ``{"stopped": reason}`` where the data or the labels ended the run, else nothing.
    """
    from pipelines.run.rank import run_rounds

    return run_rounds(ray.get(config["spec"][0]))
