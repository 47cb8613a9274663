"""The rounds on Ray: the cluster is asked and shared out, Ray Train runs a rank in every worker."""

import logging
import os
from typing import Any

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.queue import Queue

from pipelines.images.blocks import block_dataset
from pipelines.images.inputs import Images, Inputs, look_at
from pipelines.images.look import look_in_tasks
from pipelines.nodes.network import ProcessGroup
from pipelines.nodes.preflight import check_nodes, wait_for_room
from pipelines.nodes.runtime import ray_session
from pipelines.nodes.share import DECODE_CPUS, STAGE_GPUS, Share
from pipelines.nodes.tasks import RayTasks
from pipelines.results.checkpoints import begun_without_ray
from pipelines.results.progress import Listener
from pipelines.results.run_folder import RunFolder
from pipelines.run.job import RunSpec, TrainJob
from pipelines.run.meeting import ON_HEAD, Meeting
from pipelines.run.rank import Handles
from pipelines.run.shards import AllRows
from pipelines.run.worker import worker
from reid_core.labelling.engine import Engine, shards_for
from reid_core.labelling.tasks import InProcess

START_S = 60.0  # in which Ray Train lets a group of workers start, before it tries again
SILENCE = "no word from the workers for %.0f s: they start, wait for room, or have long work to do; see `ray status`"
logger = logging.getLogger(__name__)


def train(
    name: str, job: TrainJob[Any], inputs: Inputs, folder: RunFolder, runs: int
) -> dict[str, str]:
    """Run the rounds that are left; ``{"stopped": reason}`` where the data or the labels ended the run.

    Args:
        name: of the method.
        job: checked.
        inputs: scanned.
        folder: of the run, opened.
        runs: such runs at a time, among which the cluster is divided.

    Raises:
        UsageError: the cluster is too small; gives the numbers.
        ValueError: training failed; says why in one line.
        OSError: a node cannot take part, or Ray lost something that a run cannot lose.
    """
    with ray_session():
        share = wait_for_room(
            job.workers, gpu=job.gpu, start_s=job.start_s, wait_s=job.wait_s, runs=runs
        )
        check_nodes(
            folder.path,
            [(f.root, f.images.column("path")[0].as_py()) for f in inputs.found.values()],
        )
        images = look_at(inputs, look_in_tasks)
        folder.check_left_out(images.left_out)
        logger.info(
            "%s on %d images, %d workers with %g CPUs and %g GPUs each; %s",
            name, len(images.tables["target"]), job.workers, share.cpus, share.gpus, folder.path,
        )  # fmt: skip
        os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(job.wait_s)  # Ray's own has no end
        spec = _spec(name, job, share, images, folder.path)
        events = Queue(actor_options=ON_HEAD)
        listener = Listener(
            events,
            folder,
            job.method.rounds,
            images.tables["target"],
            start="starting the workers",
            silence=SILENCE,
        )
        with listener:
            handles = Handles(  # its actors live as long as it does
                tables=ray.put(images.tables),
                meeting=Meeting.remote(),
                events=events,
                wait_s=job.wait_s,
                begun=begun_without_ray(folder.path),
            )
            return fit(_trainer(spec, handles, share, images))


def _spec(name: str, job: TrainJob[Any], share: Share, images: Images, folder: str) -> RunSpec:
    tasks = RayTasks(
        cpus=DECODE_CPUS,
        threads=share.threads,
        gpus=STAGE_GPUS if job.gpu else 0.0,
        wait_s=job.wait_s,
    )
    shards = shards_for(len(images.tables["target"]), job.shards)
    return RunSpec(
        method=name,
        job=job,
        folder=folder,
        stores=images.stores,
        threads=share.threads,
        engine=Engine(  # one block is clustered inside the label task, several in what the workers leave free
            knn=job.knn,
            backend=job.backend,
            shards=shards,
            tasks=tasks if shards > 1 else InProcess(),
        ),
        tasks=tasks,
    )


def _trainer(spec: RunSpec, handles: Handles, share: Share, images: Images) -> TorchTrainer:
    job, size = spec.job, spec.config.images
    resources = {"CPU": share.cpus} | ({"GPU": share.gpus} if job.gpu else {})
    return TorchTrainer(
        worker,
        train_loop_config={"refs": [ray.put(spec), ray.put(handles)]},
        torch_config=ProcessGroup(backend="nccl" if job.gpu else "gloo", timeout_s=int(job.wait_s)),
        scaling_config=ScalingConfig(
            num_workers=job.workers, use_gpu=job.gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=spec.folder,
            failure_config=FailureConfig(
                max_failures=job.max_failures,
                controller_failure_limit=int(job.wait_s / START_S),  # of workers that find no room
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=job.keep),
        ),
        datasets={
            split: block_dataset(
                table, images.stores[split], height=size.height, width=size.width, size=job.block
            )
            for split, table in images.tables.items()
        },
        dataset_config=AllRows(),
    )


def fit(trainer: TorchTrainer) -> dict[str, str]:
    """Run the workers; what rank 0 returned.

    Raises:
        ValueError: training failed; says why in one line.
        KeyboardInterrupt: it was stopped.
    """
    try:
        return trainer.fit().return_value or {}
    except SystemExit as stopped:  # of Ray Train's own handler of Ctrl-C
        raise KeyboardInterrupt from stopped
    except TrainingFailedError as error:
        causes = list(getattr(error, "worker_failures", {}).values()) or [
            getattr(error, "controller_failure", error)
        ]
        logger.debug("training failed", exc_info=error)
        first = str(causes[0]).strip().splitlines()
        raise ValueError(
            f"training failed: {first[-1] if first else type(causes[0]).__name__}"
        ) from error
