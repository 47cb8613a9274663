"""A run of a few steps on random images, as the pipeline makes it but without Ray and with given labels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from reid_core import method as contract
from reid_core.batch import SOURCE, TARGET, Domain, Round, Sizes
from reid_core.data.decode import ImageStore
from reid_core.data.loader import BatchLoader, TrainImages
from reid_core.distributed import check_equal_on_ranks
from reid_core.models.embedder import build_embedder
from reid_core.seeding import derive
from reid_core.settings import ImageConfig, ModelConfig, group_size
from reid_core.training import Learner, reduce_terms, train_round

TARGETS, SOURCES, CLASSES, CLUSTERS = 36, 24, 4, 5
SEED = 3


def draw_images(folder: Path) -> None:
    """Random images: t00.png.. of the target, s00.png.. of the source."""
    rng = np.random.default_rng(0)
    for name in [f"t{i:02d}" for i in range(TARGETS)] + [f"s{i:02d}" for i in range(SOURCES)]:
        Image.fromarray(rng.integers(0, 255, (24, 16, 3), dtype=np.uint8)).save(
            folder / f"{name}.png"
        )


def settings(name: str, precision: str, **changes: Any) -> Any:
    """The demo preset made tiny."""
    preset = contract.load(name).PRESETS["demo"].config
    return replace(
        preset,
        batch_size=16,
        instances=2,
        bn_group=8,
        steps=20,
        rounds=2,
        model=ModelConfig(trunk="tiny", pooling="gem", weights="random", precision=precision),
        images=ImageConfig(height=24, width=16, pad=2),
        **changes,
    )


def domain(number: int, dim: int, dtype: torch.dtype) -> Domain:
    """Features and labels of the target (with outliers) or the source, the same on every rank."""
    count, classes = ((TARGETS, CLUSTERS), (SOURCES, CLASSES))[number]
    g = torch.Generator().manual_seed(number)
    label = torch.arange(count) % classes
    if number == TARGET:
        label[-4:] = -1
    return Domain(
        image_id=torch.arange(count),
        camid=torch.randint(0, 3, (count,), generator=g),
        label=label[:, None],
        feature=F.normalize(torch.randn(count, dim, generator=g).to(dtype), dim=1),
    )


def start_round(name: str, config: Any, *, uda: bool, number: int = 0) -> tuple[Any, Round]:
    """Learner and first round."""
    embedder = build_embedder(
        config.model, bn_group=group_size(config), domains=2 if uda else 1, seed=SEED
    )
    dtype = next(embedder.parameters()).dtype
    sizes = Sizes(TARGETS, CLASSES if uda else 0, embedder.dim)
    objective = contract.load(name).Objective(config, embedder, sizes).to(dtype)
    source = domain(SOURCE, embedder.dim, dtype) if uda else None
    target = domain(TARGET, embedder.dim, dtype)
    start = Round(number=number, rounds=config.rounds, step=0, target=target, source=source)
    return Learner(embedder, objective), start


def streams(name: str, config: Any, start: Round) -> dict[int, Any]:
    """The global batches of each domain."""
    method = contract.load(name)
    domains = {TARGET: start.target} | ({SOURCE: start.source} if start.source else {})
    return {
        d: contract.batches(method, config, of, derive(SEED, "batches", start.number, d))
        for d, of in domains.items()
    }


def loader(folder: Path, config: Any, *, uda: bool) -> BatchLoader:
    store = ImageStore(str(folder), None)
    images = {TARGET: TrainImages(store, [f"t{i:02d}.png" for i in range(TARGETS)])}
    if uda:
        images[SOURCE] = TrainImages(store, [f"s{i:02d}.png" for i in range(SOURCES)])
    return BatchLoader(images, (config.images,), batch_size=config.batch_size, seed=SEED)


def run(folder: Path, name: str, config: Any, uda: bool, steps: int) -> dict[str, Any]:
    """Train ``steps`` steps; returns losses, weights and memory."""
    learner, start = start_round(name, config, uda=uda)
    learner.objective.begin_round(start)
    method = contract.load(name)
    optimizer = contract.optimizer(method, config, learner.embedder, learner.objective)
    if config.model.precision != "fp64":  # Adam's first step is a sign: rounding may turn it around
        optimizer = torch.optim.SGD(optimizer.param_groups[0]["params"], lr=0.1)
    batches = loader(folder, config, uda=uda).round(start, streams(name, config, start), steps)
    rounds = train_round(learner, batches, optimizer, progress=(0, 0.5), num_steps=steps)
    history = [terms for terms, _ in rounds]
    check_equal_on_ranks(list(learner.objective.buffers()), "the memory")
    return {
        "losses": reduce_terms(history, 0),
        "state": learner.embedder.state_dict(),
        "memory": getattr(learner.objective, "memory_RD", None),
    }
