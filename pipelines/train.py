"""``reid train METHOD``: the whole loop on Ray Train, resumed where a run of the same name exists."""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray
import tyro
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.queue import Queue

from pipelines.images.blocks import DECODE_CPUS, AllRows, block_dataset
from pipelines.images.inputs import Images, Inputs, default_cache, look_at, scan_inputs
from pipelines.nodes.network import ProcessGroup
from pipelines.nodes.preflight import check_nodes, wait_for_room
from pipelines.nodes.runtime import STAGE_GPUS, Share, ray_session
from pipelines.nodes.tasks import RayTasks
from pipelines.results.progress import Listener
from pipelines.results.report import result_table
from pipelines.results.run_folder import RunFolder, describe_environment, settings, summarise
from pipelines.run.meeting import ON_HEAD, Meeting
from pipelines.run.rounds import RunSpec
from pipelines.run.worker import worker
from reid_core import method as contract
from reid_core.errors import UsageError
from reid_core.evaluation.ranking import CameraFilter
from reid_core.labelling.engine import KNN, Backend, Engine, shards_for
from reid_core.labelling.guard import Guard
from reid_core.labelling.tasks import InProcess
from reid_core.models.embedder import build_embedder
from reid_core.settings import group_size

ConfigT = TypeVar("ConfigT")
START_S = 60.0  # in which Ray Train lets a group of workers start, before it tries again
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainJob(Generic[ConfigT]):
    """Learn an embedding from unlabelled images; the same --storage and --name go on where a run stopped."""

    method: ConfigT
    data: str = ""
    """Root of the images: a path or a URI such as s3://bucket/folder."""
    source: str = ""
    """Root of a labelled source set, for domain adaptation."""
    layout: str = "auto"
    """Layout of the data; `reid scan` tells which are known."""
    storage: str = "runs"
    """Folder or URI that holds runs; every node must reach it."""
    name: str = ""
    """Name of the run; METHOD-PRESET when empty."""
    workers: int = 1
    """Train workers; the result does not depend on it."""
    gpu: bool = False
    """Give every worker a GPU."""
    rounds: int | None = None
    """Rounds; those of the preset when not given."""
    seed: int = 1
    """Of every random draw."""
    eval_every: int = 10
    """Rounds between evaluations; the first and the last are always made."""
    camera_filter: CameraFilter = "same_camera"
    """Gallery images of the query's identity that do not count: of its camera, of its tracklet, or none."""
    guard: Guard = field(default_factory=Guard)
    knn: KNN = "auto"
    """Neighbour search of the label stage; auto is torch. All find the same neighbours."""
    backend: Backend = "auto"
    """Of the label stage: exact on CPUs, or cuML on a GPU; auto takes cuML with --gpu where it is installed."""
    shards: int = 0
    """Blocks of images in the label stage, each pair a Ray task; 0: one for every 131,072 images."""
    block: int = 128
    """Images of one extraction batch."""
    cache: str = default_cache()
    """Folder on each node's local disk that keeps encoded images; '' keeps none."""
    loader_workers: int = 0
    """DataLoader processes a train worker; 4 to 8 on a GPU."""
    log_every: int = 10
    """Steps between lines of the progress bar."""
    keep: int = 2
    """Checkpoints to keep."""
    max_failures: int = 3
    """Crashed workers that the run survives."""
    wait_s: float = 1800.0
    """Longest wait for another worker or a Ray task, seconds."""
    start_s: float = 0.0
    """Longest wait for nodes that are still starting, seconds; 0 takes the nodes that are there."""


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


def check(job: TrainJob[Any]) -> TrainJob[Any]:
    """Refuse settings that cannot work together; returns the job with ``rounds`` put into its method."""
    if job.rounds is not None:
        job = replace(job, method=replace(job.method, rounds=job.rounds), rounds=None)
    batch, group = job.method.batch_size, group_size(job.method)
    if job.workers < 1 or batch % job.workers or (batch // job.workers) % group:
        raise UsageError(
            f"--workers {job.workers} does not divide batch_size = {batch} into whole BatchNorm groups of "
            f"{group}; use a divisor of {batch // group}"
        )
    for name in ("eval_every", "block", "log_every", "keep"):
        if getattr(job, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(job, name)}; must be at least 1")
    check_labels(job)
    return job


def check_labels(job: TrainJob[Any]) -> None:
    """Refuse settings of the label stage that cannot work."""
    if job.shards < 0:
        raise UsageError(f"--shards {job.shards}; counts blocks from 1, and 0 chooses")
    for name, asked in (("faiss", job.knn == "faiss"), ("cuml", job.backend == "cuml")):
        if asked and not find_spec(name):
            raise UsageError(
                f"{name} is not installed: pip install '.[cpu]' or '.[gpu]' in the checkout"
            )
    if job.backend == "cuml" and not job.gpu:
        raise UsageError("--backend cuml needs --gpu; leave one out or give both")
    if job.guard.policy == "widen-eps" and not hasattr(job.method, "eps"):
        raise UsageError(
            "--guard.policy widen-eps: this method has no eps; use stop, warn or reuse-last"
        )


def run(name: str, job: TrainJob[Any], *, runs: int = 1) -> dict[str, Any]:
    """Train and return what ``result.json`` holds.

    Args:
        name: of the method.
        job: as parsed.
        runs: such runs at a time, among which the cluster is divided.

    Raises:
        UsageError: settings, cluster or saved run do not fit the job.
        ValueError: the data or the labels do not allow training; the message says what to change.
    """
    job = check(job)
    if job.source and not getattr(contract.load(name), "TAKES_SOURCE", True):
        raise UsageError(f"--source: {name} has no use for a labelled source set; leave it out")
    build_embedder(job.method.model, bn_group=1)  # wrong weights are refused before any work
    inputs = scan_inputs(job.data, job.source, job.layout, job.cache)
    job = replace(job, data=absolute(job.data), source=absolute(job.source))
    folder = RunFolder(job.storage, job.name)
    folder.open(
        _config(name, job, inputs),
        describe_environment(workers=job.workers, data=inputs.fingerprints),
    )
    try:
        with ray_session():
            share = wait_for_room(
                job.workers, gpu=job.gpu, start_s=job.start_s, wait_s=job.wait_s, runs=runs
            )
            images = [(f.root, f.images.column("path")[0].as_py()) for f in inputs.found.values()]
            check_nodes(folder.path, images)
            return _run(name, job, share, look_at(inputs), folder)
    finally:
        folder.close()


def absolute(root: str) -> str:
    """A path as every process sees it; a URI or an empty string as it is."""
    return str(Path(root).resolve()) if root and "://" not in root else root


def identity(name: str, job: TrainJob[Any], inputs: Inputs) -> dict[str, Any]:
    """All that changes a number of a run of this method, as plain JSON values."""
    return {
        "method_name": name,
        "method": settings(job.method),
        "round_guard": settings(job.guard),
        "seed": job.seed,
        "block": job.block,
        "camera_filter": job.camera_filter,
        "data": inputs.fingerprints,
        "layout": {part: found.layout for part, found in inputs.found.items()},
    }


def _config(name: str, job: TrainJob[Any], inputs: Inputs) -> dict[str, Any]:
    return {
        "command": sys.argv,
        "seed": job.seed,
        "job": settings(job),
        "identity": identity(name, job, inputs),
    }


def _run(
    name: str, job: TrainJob[Any], share: Share, images: Images, folder: RunFolder
) -> dict[str, Any]:
    folder.check_left_out(images.left_out)
    logger.info(
        "%s on %d images, %d workers with %g CPUs and %g GPUs each; %s",
        name, len(images.tables["target"]), job.workers, share.cpus, share.gpus, folder.path,
    )  # fmt: skip
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(job.wait_s)  # Ray's own has no end
    events = Queue(actor_options=ON_HEAD)
    with Listener(events, folder, job.method.rounds, images.tables["target"]):
        spec = _spec(name, job, share, images, folder, events)  # its actors live as long as it does
        outcome = fit(_trainer(spec, job, share, images))
    if "stopped" in outcome:
        raise ValueError(outcome["stopped"])
    if folder.evaluations()[-1]["round"] != job.method.rounds:
        raise OSError(f"{folder.path}: the last evaluation was not written; repeat the command")
    result = summarise(folder.evaluations())
    folder.write_json("result.json", result)
    for line in result_table(result, name):
        logger.info(line)
    return result


def _spec(
    name: str, job: TrainJob[Any], share: Share, images: Images, folder: RunFolder, events: Queue
) -> RunSpec:
    tasks = RayTasks(
        cpus=DECODE_CPUS,
        threads=share.threads,
        gpus=STAGE_GPUS if job.gpu else 0.0,
        wait_s=job.wait_s,
    )
    return RunSpec(
        method=name,
        config=job.method,
        seed=job.seed,
        folder=folder.path,
        tables=ray.put(images.tables),
        stores=images.stores,
        meeting=Meeting.remote(),
        events=events,
        gpu=job.gpu,
        eval_every=job.eval_every,
        log_every=job.log_every,
        camera_filter=job.camera_filter,
        guard=job.guard,
        threads=share.threads,
        loader_workers=job.loader_workers,
        wait_s=job.wait_s,
        engine=_engine(job, len(images.tables["target"]), tasks),
        tasks=tasks,
    )


def _engine(job: TrainJob[Any], images: int, tasks: RayTasks) -> Engine:
    """One block is clustered inside the label task, several by tasks in what the train workers leave free."""
    shards = shards_for(images, job.shards)
    place = tasks if shards > 1 else InProcess()
    return Engine(knn=job.knn, backend=job.backend, shards=shards, tasks=place)


def _trainer(spec: RunSpec, job: TrainJob[Any], share: Share, images: Images) -> TorchTrainer:
    resources = {"CPU": share.cpus} | ({"GPU": share.gpus} if job.gpu else {})
    return TorchTrainer(
        worker,
        train_loop_config={"spec": [ray.put(spec)]},
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
                table,
                images.stores[split].root,
                images.stores[split].folder,
                height=job.method.images.height,
                width=job.method.images.width,
                size=job.block,
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


def main(argv: Sequence[str]) -> int:
    """Entry of ``reid train``."""
    name, job = parse(argv)
    if job is None:
        for line in preset_lines(name):
            print(line)  # noqa: T201
        return 0
    run(name, job)
    return 0


def preset_lines(name: str) -> list[str]:
    """The table of ``reid train METHOD --list``."""
    presets = contract.load(name).PRESETS
    width = max(map(len, presets))
    lines = [f"{'preset':<{width}}{'mAP':>6}{'R1':>6}{'R5':>6}{'R10':>6}  published for"]
    for preset, entry in presets.items():
        figures = (entry.published.get(key) for key in ("mAP", "rank1", "rank5", "rank10"))
        cells = "".join(f"{'-' if v is None else format(v, '.1f'):>6}" for v in figures)
        lines.append(f"{preset:<{width}}{cells}  {entry.about}")
    return lines
