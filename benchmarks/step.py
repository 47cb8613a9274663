"""Speed of extraction and training, and the share of a training step outside the backbone.

``python -m benchmarks.step`` runs ResNet-50 at 256x128 on random images: on a GPU with bfloat16 and batch 256;
on a CPU give ``--trunk resnet18 --height 128 --width 64 --batch 32``. Goal on a GPU: objective, memory and
optimiser add at most 5 % to forward and backward of the backbone.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F

from reid_core.batch import Batch, Domain, Round, Sizes
from reid_core.method import load, optimizer
from reid_core.models.embedder import build_embedder
from reid_core.settings import ModelConfig, group_size
from reid_core.training import Learner, train_round


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Wall seconds of one call, after two that do not count."""
    for _ in range(2):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def main() -> None:
    """Print images a second of extraction and training, and the share outside the backbone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="cluster_contrast")
    parser.add_argument("--trunk", default="resnet50")
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--clusters", type=int, default=700)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--repeats", type=int, default=10)
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method, size, count = load(asked.method), asked.batch, 16 * asked.clusters
    model = ModelConfig(
        trunk=asked.trunk, weights="random", precision=asked.precision, channels_last=True
    )
    config = replace(method.Config(), model=model, batch_size=size, bn_group=size // 4)
    embedder = build_embedder(model, bn_group=group_size(config)).to(device)
    image = torch.randn(size, 3, asked.height, asked.width, device=device)
    image = image.contiguous(memory_format=torch.channels_last)
    row = torch.arange(size, device=device)
    label = torch.arange(count, device=device) % asked.clusters
    batch = Batch(
        image=(image,),
        image_id=row,
        row=row,
        camid=row % 6,
        label=label[:size, None],
        domain=torch.zeros_like(row),
        position=row,
        seed=0,
    )
    target = Domain(
        image_id=torch.arange(count, device=device),
        camid=torch.arange(count, device=device) % 6,
        label=label[:, None],
        feature=F.normalize(torch.randn(count, embedder.dim, device=device), dim=1),
    )
    objective = method.Objective(config, embedder, Sizes(count, 0, embedder.dim)).to(device)
    objective.begin_round(Round(number=0, rounds=2, step=0, target=target, source=None))
    learner = Learner(embedder, objective)
    steps = optimizer(method, config, embedder, objective)

    def endless() -> Iterator[Batch]:
        while True:
            yield batch

    def whole() -> None:
        list(train_round(learner, endless(), steps, progress=(0, 0.5), num_steps=1))

    def backbone() -> None:
        embedder.train()
        embedder(image).sum().backward()

    @torch.inference_mode()
    def extract() -> None:
        embedder.eval()
        embedder(image)

    step, own, forward = (
        seconds(work, device, asked.repeats) for work in (whole, backbone, extract)
    )
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(
        f"{name}, {asked.trunk} {asked.height}x{asked.width} {asked.precision}, batch {size}, {asked.clusters} "
        f"clusters: extraction {size / forward:.0f} images/s, training {size / step:.0f} images/s; "
        f"{1 - own / step:.1%} of a step outside the backbone's forward and backward"
    )


if __name__ == "__main__":
    main()
