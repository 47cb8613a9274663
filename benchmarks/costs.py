"""Cost of a training step beyond the backbone: losses with their gradient to the embeddings, memory, labels.

``python -m benchmarks.costs`` prints for each method and number of images N the milliseconds of the median step
(of an objective's forward, of the backward to its embeddings, of its update), CPU milliseconds over all threads,
the same a 1000 images (constant where the cost grows linearly) and in products of the batch with N rows, MB of the
objective's state, and its memory beyond the features at the peak. ``--device cuda`` adds the share of a step of
ResNet-50 in bfloat16 at 256x128, which is to be at most 5 % for cluster_contrast, hybrid_memory, ise and hdcpd and
15 % for hcd and snnet; not run on a GPU.

The embedder here gives rows that are drawn: features half way to their class mean, as in the middle of a run. So a
teacher's forward and its following the student are not in the figures: they are the cost of a network.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from torch import Tensor, nn

from benchmarks.measure import BLOCK_ROWS, Cost, cost, in_own_process, people
from reid_core import method as contract
from reid_core.batch import Batch, Domain, Round, Sizes
from reid_core.labelling.given import numbered
from reid_core.labels import Features
from reid_core.memory.pseudo_labels import PseudoLabelMemory
from reid_core.memory.updates import class_means
from reid_core.seeding import generator
from reid_core.settings import ModelConfig

OUTLIERS = 0.1  # share of the images
NOISE = 0.5  # length of what sets a view apart from the image's feature


class Rows(nn.Module):
    """Stands for the network: an image is its embedding, and one weight asks for a gradient."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x_bD: Tensor) -> Tensor:
        return x_bD * self.one


def images(count: int, dim: int, device: torch.device) -> Domain:
    """Identities of 17 images on average; a tenth of the images is an outlier."""
    drawn, pid, camid = people(count, dim, seed=0)
    feature, label = torch.from_numpy(drawn), torch.from_numpy(numbered(pid))
    mean = class_means(feature, label, int(label.max()) + 1)
    for part in torch.arange(count).split(BLOCK_ROWS):
        feature[part] = F.normalize(feature[part] + mean[label[part]] / 2, dim=1)
    label[torch.rand(count, generator=generator(0, "outliers")) < OUTLIERS] = -1
    return Domain(
        image_id=torch.arange(count),
        camid=torch.from_numpy(camid),
        label=torch.from_numpy(numbered(label.numpy()))[:, None],
        feature=feature,
    ).to(device)


class Run:
    """An objective in the middle of its run, and batches for it."""

    def __init__(self, name: str, target: Domain, batch_size: int, dim: int) -> None:
        self.method = contract.load(name)
        self.config = replace(self.method.Config(), batch_size=batch_size)
        self.target, device = target, target.image_id.device
        self.clusters = target.label[:, 0].cpu().numpy()
        self.embedder = Rows(dim).to(device)
        sizes = Sizes(len(target.image_id), 0, dim)
        self.objective: Any = self.method.Objective(self.config, self.embedder, sizes).to(device)
        for number in (0, self.config.rounds // 2):
            self._begin(number)
        self._see_every_image()

    def _begin(self, number: int) -> None:
        origin = contract.labels_from(self.method, self.config, number)
        label = self.target.label
        if origin == "extracted" and not hasattr(self.config, "eps"):  # not DBSCAN's clusters
            rows = self.target.image_id.cpu().numpy(), self.target.extracted.cpu().numpy()
            features = Features(image_id=rows[0], feature=rows[1])
            found = self.method.assign_labels(self.config, features, None)
            label = torch.from_numpy(found.label)
        elif origin == "none":
            label = self.target.image_id[:, None]
        elif origin == "online":
            levels = self.objective.labels().cpu().numpy().T
            label = torch.from_numpy(np.stack([numbered(level) for level in levels], axis=1))
        self.target = replace(self.target, label=label.to(self.target.label.device))
        made = number * self.config.steps
        self.objective.begin_round(
            Round(
                number=number, rounds=self.config.rounds, step=made, target=self.target, source=None
            )
        )

    @torch.no_grad()
    def _see_every_image(self) -> None:
        """What the passes before would have left: a row an image, and claims on the images of the same class."""
        for memory in self.objective.buffers():
            if memory.shape == self.target.extracted.shape:
                memory.copy_(self.target.extracted)
        place = np.arange(len(self.clusters)), self.clusters.clip(min=0)
        member = csr_array(((self.clusters >= 0).astype(np.int64), place))
        for memory in self.objective.modules():
            if isinstance(memory, PseudoLabelMemory):
                pair_P2 = torch.from_numpy(np.stack((member @ member.T).nonzero(), axis=1))
                memory.write(self.target.image_id, pair_P2.to(self.target.image_id))

    def batches(self) -> Iterator[Batch]:
        """Endless; every view of an image lies near its feature."""
        domain = self.target.to(torch.device("cpu"))
        for seed, rows in enumerate(contract.batches(self.method, self.config, domain, 0)):
            row = torch.from_numpy(rows).to(self.target.image_id)
            x_BD = self.target.extracted[row]
            scale = NOISE / x_BD.shape[1] ** 0.5
            views = [
                F.normalize(x_BD + scale * torch.randn_like(x_BD), dim=1)
                for _ in contract.views(self.method, self.config)
            ]
            yield Batch(
                image=tuple(views),
                image_id=row,
                row=row,
                camid=self.target.camid[row],
                label=self.target.label[row],
                domain=torch.zeros_like(row),
                position=torch.arange(len(row), device=row.device),
                seed=seed,
            )

    def step(self, batch: Batch) -> list[Cost]:
        """The costs of forward, backward and update."""
        wait: Callable[[], object] = torch.cuda.synchronize if batch.row.is_cuda else lambda: None
        wait()
        with cost() as forward:
            step = self.objective(self.embedder, batch, 0.5)
            wait()
        with cost() as backward:
            step.total.backward()
            wait()
        with cost() as update:
            self.objective.update(self.embedder, batch, step)
            wait()
        return [forward, backward, update]


def report(name: str, count: int, backbone: float, asked: argparse.Namespace) -> None:
    """Measure and print one method at one size."""
    torch.set_num_threads(asked.threads)
    device = torch.device(asked.device)
    few = Run(name, images(1000, 64, device), asked.batch, 64)
    few.step(next(few.batches()))  # start threads, load libraries
    target = images(count, asked.dim, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    with cost() as whole:
        run = Run(name, target, asked.batch, asked.dim)
        steps = [run.step(b) for _, b in zip(range(asked.steps + 1), run.batches(), strict=False)]
    with cost() as product:
        F.linear(target.extracted[: asked.batch], target.extracted)
    peak = whole.memory
    if device.type == "cuda":
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    state = sum(x.nbytes for x in (*run.objective.buffers(), *run.objective.parameters())) / 2**20
    forward, backward, update = (
        1e3 * statistics.median(part.wall for part in parts)
        for parts in zip(*steps[1:], strict=True)
    )
    wall = statistics.median(1e3 * sum(part.wall for part in parts) for parts in steps[1:])
    cpu = statistics.median(1e3 * sum(part.cpu for part in parts) for parts in steps[1:])
    share = f"{wall / 1e3 / backbone:6.1%}" if backbone else ""
    print(
        f"{name:16} {count:6d} {forward:8.1f} {backward:8.1f} {update:8.1f} {wall:8.1f} {cpu:8.1f} "
        f"{cpu / count * 1e3:8.2f} {cpu / 1e3 / product.cpu:8.2f} {state:7.0f} {peak:7.0f} {share}",
        flush=True,
    )


def backbone_seconds(batch: int, device: torch.device) -> float:
    """Forward and backward of ResNet-50 in bfloat16 at 256x128."""
    from benchmarks.step import seconds  # torchvision takes seconds to import
    from reid_core.models.embedder import build_embedder

    model = ModelConfig(trunk="resnet50", weights="random", precision="bf16", channels_last=True)
    embedder = build_embedder(model, bn_group=batch // 4).to(device)
    image = torch.randn(batch, 3, 256, 128, device=device)
    image = image.contiguous(memory_format=torch.channels_last)
    return seconds(lambda: embedder(image).sum().backward(), device, 10)


def main() -> None:
    """Measure each method and size in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=contract.names())
    parser.add_argument("--images", type=int, nargs="+", default=[8155, 16_310, 32_621])
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3, help="measured, after one that is not")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    backbone = backbone_seconds(asked.batch, device) if device.type == "cuda" else 0.0
    print(
        f"{device.type}, {asked.threads} threads, D {asked.dim}, batch {asked.batch}; milliseconds, MB\n"
        f"{'method':16} {'N':>6} {'forward':>8} {'backward':>8} {'update':>8} {'all':>8} {'CPU':>8} "
        f"{'CPU/1000':>8} {'products':>8} {'state':>7} {'memory':>7} {'share' if backbone else ''}",
        flush=True,
    )
    for name in asked.methods:
        for count in asked.images:
            in_own_process(partial(report, name), count, backbone, asked)


if __name__ == "__main__":
    main()
