"""Under bf16 autocast every method keeps its losses and all that it remembers in fp32."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from reid_core import method as contract
from reid_core.batch import TARGET
from reid_core.data.decode import ImageStore
from reid_core.data.loader import BatchLoader, TrainImages
from reid_core.settings import ImageConfig, ModelConfig
from reid_core.training import train_round
from tests.methods import small_run

STEPS = 2


def settings(name: str) -> Any:
    """The demo preset made tiny, with labels that change and are mined from the first step on."""
    demo = contract.load(name).PRESETS["demo"].config
    tiny = {
        "batch_size": 16,
        "instances": 2,
        "bn_group": 8,
        "clusters": 5,
        "min_size": 4,
        "start_iter": 0,
        "multi_label_from": 0.0,
        "model": ModelConfig(
            trunk="tiny", pooling="gem", weights="random", precision="bf16", head=demo.model.head
        ),
        "images": ImageConfig(height=24, width=16, pad=2),
    }
    return replace(
        demo, **{field.name: tiny[field.name] for field in fields(demo) if field.name in tiny}
    )


@pytest.mark.parametrize("name", contract.names())
def test_losses_and_memories_stay_in_fp32_under_bf16(name: str, tmp_path: Path) -> None:
    small_run.draw_images(tmp_path)
    config, method = settings(name), contract.load(name)
    learner, start = small_run.start_round(name, config, uda=False)
    start = replace(start, target=replace(start.target, label=start.target.label.clamp(min=0)))
    learner.objective.begin_round(start)
    names = [f"t{i:02d}.png" for i in range(small_run.TARGETS)]
    images = {TARGET: TrainImages(ImageStore(str(tmp_path), None), names)}
    loader = BatchLoader(
        images, contract.views(method, config), batch_size=config.batch_size, seed=small_run.SEED
    )
    batches = loader.round(start, small_run.streams(name, config, start), STEPS)
    objective: Any = learner.objective
    optimizer = contract.optimizer(method, config, learner.embedder, objective)
    done = list(train_round(learner, batches, optimizer, progress=(0, 0.5), num_steps=STEPS))
    assert len(done) == STEPS
    for terms, _ in done:
        for term in terms.values():
            assert term.dtype == torch.float32
            assert term.isfinite()
    for key, value in objective.state_dict(keep_vars=True).items():
        if value.is_floating_point():
            assert value.dtype == torch.float32, key
            assert value.isfinite().all(), key
    for key, value in objective.named_buffers():  # a memory that is new every round is in no state
        assert not value.is_floating_point() or value.dtype == torch.float32, key
