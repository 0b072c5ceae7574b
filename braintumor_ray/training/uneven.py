"""How data are split among the workers.

Alone in a module: Ray's process that does it imports this, and has no use for torch.
"""

from typing import Any

from ray.data import Dataset
from ray.train import DataConfig


class UnevenValidation(DataConfig):
    """Splits validation without dropping rows.

    Ray's default gives every worker equally many rows and drops the rest: 33 rows on 2 workers
    become 32. Training keeps that (all ranks must take equally many steps), validation must not.
    """

    def configure(
        self,
        datasets: dict[str, Dataset],
        world_size: int,
        worker_handles: Any,  # noqa: ANN401 - Ray's signature
        worker_node_ids: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> list[dict[str, Any]]:
        """One dictionary of iterators per worker; Ray may ask for one data set at a time."""
        training = {name: data for name, data in datasets.items() if name != "val"}
        output: list[dict[str, Any]] = super().configure(
            training, world_size, worker_handles, worker_node_ids, **kwargs
        )
        if "val" not in datasets:
            return output
        data = datasets["val"].copy(datasets["val"])
        data.context.execution_options = self._resolve_execution_options("val")
        shards = data.streaming_split(world_size, equal=False, locality_hints=worker_node_ids)
        for shares, shard in zip(output, shards, strict=True):
            shares["val"] = shard
        return output
