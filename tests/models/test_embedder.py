import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from reid_core.models.embedder import build_embedder, load_embedder, save_embedder
from reid_core.models.normalisation import GroupBatchNorm
from reid_core.models.trunks import TRUNKS
from reid_core.settings import ImageConfig, ModelConfig

TINY = ModelConfig(trunk="tiny", weights="random")


def images(count: int = 8, height: int = 32, width: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("trunk", TRUNKS)
def test_trunks_are_built_with_the_stated_width(trunk: str) -> None:
    build, dim, _ = TRUNKS[trunk]
    with torch.device("meta"):
        assert build()(torch.empty(2, 3, 64, 32)).shape[:2] == (2, dim)


def test_resnet_map_is_16_by_8_for_a_person() -> None:
    with torch.inference_mode():
        assert TRUNKS["resnet18"].build().eval()(images(1, 256, 128)).shape == (1, 512, 16, 8)


def test_resnet50_map_is_16_by_8_for_a_person() -> None:
    with torch.device("meta"):
        assert TRUNKS["resnet50"].build()(torch.empty(2, 3, 256, 128)).shape == (2, 2048, 16, 8)


@pytest.mark.parametrize("pooling", ["avg", "gem"])
def test_rows_are_unit_and_the_neck_has_no_shift(pooling: str) -> None:
    embedder = build_embedder(replace(TINY, pooling=pooling), bn_group=4)
    for mode in (True, False):
        rows = embedder.train(mode)(images())
        assert rows.shape == (8, embedder.dim)
        assert rows.dtype == torch.float32
        assert torch.allclose(rows.norm(dim=1), torch.ones(8))
    embedder(images()).sum().backward()
    assert embedder.neck.bias.grad is None
    assert (embedder.neck.bias == 0).all()
    assert (embedder.neck.weight == 1).all()


def test_forward_is_trunk_pool_neck_normalise() -> None:
    embedder = build_embedder(TINY, bn_group=8).eval()
    pooled = embedder.trunk(images()).mean((2, 3))
    want = nn.functional.normalize(
        pooled / (1 + 1e-5) ** 0.5
    )  # fresh statistics: mean 0, variance 1
    assert torch.allclose(embedder(images()), want, atol=1e-6)


def test_training_moves_all_statistics_once_and_evaluation_none() -> None:
    embedder = build_embedder(TINY, bn_group=4)
    layers = [m for m in embedder.modules() if isinstance(m, GroupBatchNorm)]
    embedder(images())
    assert [int(layer.num_batches_tracked) for layer in layers] == [1] * len(layers)
    before = copy.deepcopy(embedder.state_dict())
    embedder.eval()(images())
    assert all(torch.equal(before[k], v) for k, v in embedder.state_dict().items())


def test_a_seed_fixes_the_weights_and_the_global_state_is_left_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second, other = (
        build_embedder(TINY, bn_group=4, seed=s).state_dict() for s in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_double_precision_reaches_every_value() -> None:
    embedder = build_embedder(replace(TINY, precision="fp64", pooling="gem"), bn_group=4)
    rows = embedder(images())
    assert rows.dtype == torch.float64
    floats = [v for v in embedder.state_dict().values() if v.is_floating_point()]
    assert {value.dtype for value in floats} == {torch.float64}
    single = build_embedder(replace(TINY, pooling="gem"), bn_group=4)
    assert torch.allclose(single(images()).double(), rows, atol=1e-4)


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"channels_last": True}])
def test_speed_settings_change_little(change: dict) -> None:
    plain, fast = (build_embedder(c, bn_group=4) for c in (TINY, replace(TINY, **change)))
    want, found = plain(images()), fast(images())
    assert found.dtype == torch.float32
    assert (found * want).sum(1).min() > 0.999
    found.square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in fast.parameters() if p.requires_grad)


def test_domains_share_all_but_the_normalisation() -> None:
    embedder = build_embedder(TINY, bn_group=4, domains=2)
    one = build_embedder(TINY, bn_group=4)
    assert torch.allclose(embedder(images(16))[8:], one(images(16)[8:]), atol=1e-6)
    assert torch.allclose(embedder.eval()(images()), one.eval()(images()), atol=1e-6)


def test_save_and_load(tmp_path: Path) -> None:
    model = replace(TINY, pooling="gem", channels_last=True)
    embedder = build_embedder(model, bn_group=4)
    embedder(images())  # statistics that are not the first ones
    size, path = ImageConfig(height=48, width=48), str(tmp_path / "new" / "embedder.safetensors")
    save_embedder(embedder, model, size, path)
    loaded, found_model, found_size = load_embedder(path)
    assert (found_model, found_size) == (model, size)
    assert not loaded.training
    assert list(loaded.state_dict()) == list(embedder.state_dict())
    assert torch.equal(loaded(images()), embedder.eval()(images()))
    again = str(tmp_path / "again.safetensors")
    save_embedder(embedder, model, size, again)
    assert Path(again).read_bytes() == Path(path).read_bytes()


def test_two_domains_are_loaded_as_the_target(tmp_path: Path) -> None:
    embedder = build_embedder(TINY, bn_group=4, domains=2)
    embedder(images(16))
    path = str(tmp_path / "embedder.safetensors")
    save_embedder(embedder, TINY, ImageConfig(), path)
    loaded = load_embedder(path)[0]
    assert torch.equal(loaded(images()), embedder.eval()(images()))


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({}, "no settings"),
        ({"settings": '{"model": {"trunk": "tiny", "new": 1}, "images": {}}'}, "new"),
    ],
)
def test_settings_of_another_version_are_refused(
    tmp_path: Path, notes: dict[str, str], message: str
) -> None:
    header = json.dumps({"__metadata__": notes}).encode()
    path = tmp_path / "embedder.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=message):
        load_embedder(str(path))


def test_another_file_is_no_embedder(tmp_path: Path) -> None:
    path = tmp_path / "embedder.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"embedder\.safetensors: no \.safetensors file"):
        load_embedder(str(path))


@pytest.mark.slow
def test_a_compiled_trunk_keeps_names_and_values() -> None:
    plain, fast = (build_embedder(c, bn_group=4) for c in (TINY, replace(TINY, compile=True)))
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert torch.allclose(fast(images()), plain(images()), atol=1e-5)
    for name, value in plain.state_dict().items():
        assert torch.allclose(fast.state_dict()[name].double(), value.double(), atol=1e-5), name


def test_the_pooled_head_leaves_the_neck_out_of_evaluation() -> None:
    """methods.md 1.1, MMCL head: the bias is learnt, and evaluation takes the rows before the neck."""
    embedder = build_embedder(replace(TINY, head="pooled"), bn_group=8)
    embedder(images())[:, 0].sum().backward()
    assert embedder.neck.bias.grad is not None
    embedder.eval()
    want = nn.functional.normalize(embedder.trunk(images()).mean((2, 3)))
    assert torch.allclose(embedder(images()), want)
