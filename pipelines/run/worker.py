"""The function that Ray Train runs in every worker. It imports little: Ray's controller unpickles it as well."""

from typing import Any

import ray


def worker(config: dict[str, Any]) -> dict[str, str]:
    """Fetch the RunSpec and the Handles that ``config["refs"]`` lists, and run the rounds that are left.

    Returns:
        ``{"stopped": reason}`` where the data or the labels ended the run, else nothing.
    """
    import torch

    from pipelines.run.place import Stopped
    from pipelines.run.rank import Rank
    from pipelines.run.rounds import Rounds

    spec, handles = ray.get(config["refs"])
    torch.set_num_threads(spec.threads)
    images: Any = ray.get(handles.tables)
    try:
        Rounds(Rank(handles, images, gpu=spec.job.gpu), spec, images).run()
    except Stopped as reason:
        return {"stopped": str(reason)}
    return {}
