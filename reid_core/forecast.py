"""What a run will need, before it starts: time, RAM, VRAM and disk of every stage.

N images, D feature size, B global batch, Q queries, G gallery images. Memory and disk are in bytes, GB = 1e9.
The constants say where they come from. On the machine they were measured on the label stage and the ranking are
right to a factor of two; the other rows are rougher, and slow disks or networks are not in them.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

# CPU: 2 shared cores with AVX-512 BF16, torch 2.15; benchmarks/labels.py, evaluation.py, extraction.py
CORE_FP32 = 1.1e11  # FLOP/s of a core: half the products of 32,621 x 2048 in 20 CPU-s
CORE_BF16 = 3.9e11  # the same in 5.6 CPU-s
RERANK = 7.5e-10  # CPU-s a value of exact products, (2 k + 4) D an image; with SELECT fitted to
SELECT = 2.5e-9  # CPU-s a multiplied pair; the k-NN of 12,936 x 2048 to 1,000,000 x 256
JACCARD = 4.8e-5  # CPU-s an image with k1 = 30
JOIN = 1.1e-4  # s an image in one task: joining the blocks of V; 1,000,000 images in 8 blocks took 140 s in all
DBSCAN = 2e-5  # CPU-s an image, scores included; nearly all in one thread
RANK = 5e-9  # CPU-s a pair of query and gallery image, beyond the product
CORE_IMAGES = 13.0  # images/s a core through ResNet-50 at 256 x 128, fp32
CORE_DECODES = 4230.0  # images/s a core: decode and normalise
NONZEROS = 100  # an image, of V after query expansion with k1 = 30
EDGES = 30  # an image, within eps
TASKS_PER_NODE = 8  # of a label stage in several blocks
PROCESS = 0.7e9  # bytes of a Python process with torch, Arrow and compiled loops
LABEL_ROW = 40.0  # bytes of a row of LABELS in Parquet: 20 measured, doubled for longer paths

# GPU: data sheet of an H100 SXM; not run on a GPU
GPU_FP32 = 6.7e13  # FLOP/s
GPU_SHARE = 0.5  # of the data sheet that is reached; an assumption
GPU_MEMORY = 80e9
GPU_BLOCK = 0.5e9  # bytes of a block of products and its best ones
GPU_ROW, GPU_CHUNK = 6e3, 6.7e9  # bytes an image, and of one chunk, of the Jaccard graph on a GPU
DENSE_CUML = 4 * 2.3  # bytes a pair of images: the matrix and what DBSCAN needs beside it

# The network: ResNet-50 with last stride 1 at 256 x 128 in fp32, counted by torch
FORWARD = 8.1e9  # FLOP an image; backward costs twice as much
ACTIVATIONS = 0.1e9  # bytes an image in training: 66 MB kept for backward, and half of it again
WEIGHTS = 0.094e9  # bytes of its weights; gradients are one more such, Adam two
ENCODED = 20e3  # bytes of an encoded image; an assumption

CUT = "more blocks (--shards) on more nodes (--nodes), a smaller --dim, or more memory"

MEASURED = (
    "CPU constants measured on 2 shared cores with AVX-512 BF16 (benchmarks/), scaled by cores: a core multiplies "
    f"{CORE_BF16 / 1e9:.0f} GFLOP/s in bf16, {CORE_FP32 / 1e9:.0f} in fp32, embeds {CORE_IMAGES:.0f} images/s; "
    f"Jaccard {JACCARD * 1e6:.0f} and DBSCAN {DBSCAN * 1e6:.0f} CPU-us an image; network ResNet-50, 256 x 128, fp32"
)
DATA_SHEET = (
    f"GPU constants are data-sheet values, not run on a GPU: H100 SXM, {GPU_FP32 / 1e12:.0f} TFLOP/s in fp32 of which "
    f"{GPU_SHARE:.0%} are assumed to be reached"
)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done."""

    images: int  # N training images
    dim: int  # D
    query: int  # Q
    gallery: int  # G
    k1: int = 30  # neighbours a list
    rounds: int = 50
    eval_every: int = 10  # rounds between evaluations
    steps: int = 200  # optimiser steps a round
    batch_size: int = 256  # B
    workers: int = 1  # train workers
    shards: int = 1  # blocks of the label stage, see labelling/blocks.py

    @property
    def features(self) -> float:
        """Bytes of all training features in float32."""
        return 4.0 * self.images * self.dim


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A node and its GPUs, and how many such there are."""

    cpus: int
    memory: float  # bytes of RAM
    bf16: bool  # the CPU has bfloat16 units
    gpus: int = 0
    gpu_memory: float = GPU_MEMORY  # bytes of each
    nodes: int = 1

    @property
    def all_cpus(self) -> int:
        """Cores of all nodes."""
        return self.nodes * self.cpus

    @property
    def gpu_flops(self) -> float:
        """FLOP/s of all GPUs in float32."""
        return self.nodes * self.gpus * GPU_FP32 * GPU_SHARE

    def for_labels(self, work: Work) -> "Machine":
        """What the label stage uses: one node for one block, which is one task."""
        one = replace(self, nodes=1, gpus=min(self.gpus, 1))
        return self if work.shards > 1 else one


class Stage(NamedTuple):
    """The forecast for one stage; memory is that of the node, VRAM that of each GPU, in bytes."""

    name: str
    seconds: float
    ram: float
    vram: float
    disk: float
    cure: str  # what to do where it does not fit


def forecast(work: Work, machine: Machine) -> list[Stage]:
    """The stages of a round in their order, then one evaluation."""
    return [
        extraction(work, machine),
        neighbours(work, machine),
        jaccard(work, machine),
        dbscan(work, machine),
        training(work, machine),
        evaluation(work, machine),
    ]


def whole_run(work: Work, stages: list[Stage]) -> Stage:
    """All rounds and evaluations: the sum of times, the largest memory, the sum of what is on disk."""
    *of_round, evaluated = stages
    evaluations = 1 + math.ceil(work.rounds / work.eval_every)
    return Stage(
        name=f"run of {work.rounds} rounds",
        seconds=work.rounds * sum(s.seconds for s in of_round) + evaluations * evaluated.seconds,
        ram=max(s.ram for s in stages),
        vram=max(s.vram for s in stages),
        disk=sum(s.disk for s in stages),
        cure="",
    )


def misfits(work: Work, machine: Machine, stages: list[Stage]) -> list[str]:
    """One sentence for each memory that is too small: what, by how much, what to do."""
    needs = [(s.name, "RAM on a node", s.ram, machine.memory, s.cure) for s in stages]
    needs += [(s.name, "VRAM on a GPU", s.vram, machine.gpu_memory, s.cure) for s in stages]
    if machine.gpus:
        blocks = "one dense block for each connected component is clustered instead"
        name = "cuML's DBSCAN on the whole distance matrix"
        needs.append((name, "VRAM on a GPU", dense_cuml(work), machine.gpu_memory, blocks))
    return [
        f"{name} needs {need / 1e9:,.1f} GB of {kind} of {there / 1e9:,.1f} GB: {cure}"
        for name, kind, need, there, cure in needs
        if need > there
    ]


def extraction(work: Work, machine: Machine) -> Stage:
    """Embed all training images."""
    return Stage(
        name="extract",
        seconds=_embed_seconds(work.images, machine),
        ram=PROCESS + work.features / machine.nodes,
        vram=2 * WEIGHTS + GPU_BLOCK if machine.gpus else 0,
        disk=work.features + ENCODED * work.images,  # a node caches what it reads, at most all
        cure="a smaller --dim, or more memory",
    )


def neighbours(work: Work, machine: Machine) -> Stage:
    """Exact k-NN: half of the products on a CPU, all on a GPU; then the exact re-ranking on the CPU.

    The label stage holds the features more than once (``held_features``); of several blocks a task reads two.
    """
    used, dim = machine.for_labels(work), work.dim
    rerank = RERANK * work.images * (2 * work.k1 + 4) * dim / used.all_cpus
    candidates = 40.0 * work.k1
    rough = 2.0 * dim if machine.bf16 and not machine.gpus else 0
    if machine.gpus:
        product = 2.0 * work.images**2 * dim / used.gpu_flops
    else:
        flops = CORE_BF16 if machine.bf16 else CORE_FP32
        product = work.images**2 * (dim / flops + SELECT / 2) / used.all_cpus
    tasks, rows = tasks_of(work, machine)
    return Stage(
        name="k-NN",
        seconds=product + rerank,
        ram=tasks * (PROCESS + rows * (rough + candidates)) + held_features(work),
        vram=4.0 * rows * dim + GPU_BLOCK if machine.gpus else 0,
        disk=0,
        cure=CUT,
    )


def tasks_of(work: Work, machine: Machine) -> tuple[int, float]:
    """Label tasks that run on a node at a time, and the images that each of them reads."""
    if work.shards == 1:
        return 1, float(work.images)
    return machine.gpus or min(TASKS_PER_NODE, machine.cpus), 2 * work.images / work.shards


def held_features(work: Work) -> float:
    """Bytes of features on the node of the label stage: parts and whole; of several blocks these and a result too."""
    return (2 if work.shards == 1 else 4) * work.features


def jaccard(work: Work, machine: Machine) -> Stage:
    """k-reciprocal graph: every node reads all of V by rows and by columns; one block may go to a GPU with cuML."""
    lists = work.k1 / 30
    row = 8 * work.k1 + lists * (2 * 8 * NONZEROS + 12 * EDGES)  # neighbours, V twice, edges
    used, alone = machine.for_labels(work), work.shards == 1
    joins = 0 if alone else JOIN * work.images
    return Stage(
        name="Jaccard",
        seconds=JACCARD * work.images * lists**2 / used.all_cpus + joins,
        ram=tasks_of(work, machine)[0] * PROCESS + held_features(work) + row * work.images,
        vram=work.features + GPU_ROW * work.images + GPU_CHUNK if machine.gpus and alone else 0,
        disk=0,
        cure=CUT,
    )


def dbscan(work: Work, machine: Machine) -> Stage:
    """DBSCAN on the graph, and the scores; the labels of every round stay on disk."""
    whole = dense_cuml(work)
    return Stage(
        name="DBSCAN",
        seconds=DBSCAN * work.images,
        ram=PROCESS + held_features(work) + 12 * EDGES * work.images,
        vram=whole if machine.gpus and whole <= machine.gpu_memory else 0,
        disk=LABEL_ROW * work.images * (work.rounds + 1),
        cure=CUT,
    )


def dense_cuml(work: Work) -> float:
    """Bytes of VRAM for DBSCAN by cuML on the whole distance matrix."""
    return DENSE_CUML * work.images**2


def training(work: Work, machine: Machine) -> Stage:
    """The steps of a round with one memory row an image, the most that a method keeps.

    A worker holds the memory, its class means, the network with Adam and its share of the batch, on its GPU if
    there is one; and the round's features. The object store holds those twice.
    """
    share = work.batch_size / work.workers
    held = 2 * work.features + 4 * WEIGHTS + ACTIVATIONS * share
    flop = work.batch_size * (3 * FORWARD + 4.0 * work.images * work.dim)
    workers = math.ceil(work.workers / machine.nodes)
    copies = (2 + workers) * work.features + workers * PROCESS
    flops = machine.gpu_flops if machine.gpus else machine.all_cpus * CORE_FP32
    return Stage(
        name="train",
        seconds=work.steps * flop / flops,
        ram=copies + (0 if machine.gpus else workers * held),
        vram=held if machine.gpus else 0,
        disk=2 * (4 * WEIGHTS + work.features) + 3 * WEIGHTS,
        cure="a smaller --dim or --batch-size, more nodes or memory, or a method that keeps a row a cluster",
    )


def evaluation(work: Work, machine: Machine) -> Stage:
    """Embed query and gallery once and rank them in blocks of 256 queries."""
    pairs, both = work.query * work.gallery, work.query + work.gallery
    product = 2.0 * pairs * work.dim / (machine.gpu_flops or machine.all_cpus * CORE_FP32)
    return Stage(
        name="evaluate",
        seconds=_embed_seconds(both, machine) + product + RANK * pairs / machine.cpus,
        ram=PROCESS + 8.0 * both * work.dim + 4.0 * 256 * work.gallery,
        vram=4.0 * work.gallery * work.dim + GPU_BLOCK if machine.gpus else 0,
        disk=0,
        cure="a smaller --dim, or more memory",
    )


def _embed_seconds(images: int, machine: Machine) -> float:
    network = machine.gpu_flops / FORWARD or machine.all_cpus * CORE_IMAGES
    return images / min(network, machine.all_cpus * CORE_DECODES)
