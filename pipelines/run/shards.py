"""How Ray Train hands the blocks of images to the ranks. Its controller unpickles this, too: it imports little."""

from typing import Any

import ray.data
from ray.train import DataConfig


class AllRows(DataConfig):
    """Give every row to exactly one rank; Ray Train's own splits are of equal length and drop rows."""

    def configure(
        self,
        datasets: dict[str, ray.data.Dataset],
        world_size: int,
        worker_handles: Any,
        worker_node_ids: Any,
        **kwargs: Any,
    ) -> list[dict[str, ray.data.DataIterator]]:
        """One ``streaming_split(equal=False)`` a dataset."""
        shards: list[dict[str, ray.data.DataIterator]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            dataset.set_name(name)
            copy = dataset.copy(dataset)
            copy.context.execution_options = self._resolve_execution_options(name)
            split = copy.streaming_split(world_size, equal=False, locality_hints=worker_node_ids)
            for rank, shard in enumerate(split):
                shards[rank][name] = shard
        return shards
