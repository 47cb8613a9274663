import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from reid_core.data.transforms import ERASED, augment, standardise
from reid_core.settings import ImageConfig

PLAIN = {"height": 32, "width": 16, "flip": 0.0, "pad": 0, "erase": 0.0}


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randint(
        0, 256, (3, 40, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def resized(image: torch.Tensor) -> torch.Tensor:
    return TF.resize(image, [32, 16], InterpolationMode.BICUBIC, antialias=True)


def test_standardise_equals_torchvision(image: torch.Tensor) -> None:
    want = TF.normalize(
        TF.to_dtype(image, torch.float32, scale=True), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    assert torch.allclose(standardise(image, "imagenet"), want, atol=1e-6)
    assert torch.equal(
        standardise(image[None, None], "imagenet")[0, 0], standardise(image, "imagenet")
    )


def test_caffe_pixels_by_hand() -> None:
    red = torch.tensor([200, 100, 50], dtype=torch.uint8)[:, None, None]
    blue_first = standardise(red, "caffe").flatten().tolist()
    assert blue_first == pytest.approx([50 - 103.939, 100 - 116.779, 200 - 123.68], abs=1e-4)


def test_every_step_off_is_the_test_transform(image: torch.Tensor) -> None:
    view = augment(image, ImageConfig(**PLAIN), seed=1)
    assert view.dtype == torch.float32
    assert torch.equal(view, standardise(resized(image), "imagenet"))


def test_flip_of_probability_one(image: torch.Tensor) -> None:
    view = augment(image, ImageConfig(**PLAIN | {"flip": 1.0}), seed=1)
    assert torch.equal(view, standardise(resized(image).flip(-1), "imagenet"))


def test_a_crop_of_the_zero_padded_image_at_every_place(image: torch.Tensor) -> None:
    padded = standardise(TF.pad(resized(image), [1]), "imagenet")
    crops = [padded[:, t : t + 32, x : x + 16] for t in range(3) for x in range(3)]
    views = [augment(image, ImageConfig(**PLAIN | {"pad": 1}), seed) for seed in range(60)]
    places = {[torch.equal(view, crop) for crop in crops].index(True) for view in views}
    assert places == set(range(9))


@pytest.mark.parametrize("pixels", ["imagenet", "caffe"])
def test_an_erased_rectangle_has_the_published_colour_and_size(
    image: torch.Tensor, pixels: str
) -> None:
    config = ImageConfig(**PLAIN | {"erase": 1.0, "pixels": pixels})
    fill = torch.tensor(ERASED)[:, None, None]
    for seed in range(50):
        view = augment(image, config, seed)
        erased = (view == fill).all(0)
        rows, columns = erased.any(1).sum().item(), erased.any(0).sum().item()
        assert erased.sum() == rows * columns  # one full rectangle
        assert 0.01 < rows * columns / (32 * 16) < 0.45
        assert torch.equal(view[:, ~erased], standardise(resized(image), pixels)[:, ~erased])


def test_probabilities_and_areas_over_many_seeds() -> None:
    image = torch.zeros(3, 32, 16, dtype=torch.uint8)
    image[:, :, :8] = 255
    views = [
        augment(image, ImageConfig(**PLAIN | {"flip": 0.5, "erase": 0.5}), s) for s in range(600)
    ]
    fill = torch.tensor(ERASED)[:, None, None]
    share = np.array([(view == fill).all(0).float().mean().item() for view in views])
    white = [view[0, :, 0].median() > 0 for view in views]
    assert 0.43 < np.mean(white) < 0.57
    assert 0.43 < (share > 0).mean() < 0.57
    assert 0.15 < share[share > 0].mean() < 0.23  # 0.21 less what does not fit


def test_an_affine_map_stays_on_the_paper() -> None:
    paper = torch.full((3, 32, 16), 230, dtype=torch.uint8)
    config = ImageConfig(**PLAIN | {"rotate": 30.0, "shift": 0.2, "zoom": 0.2, "shear": 10.0})
    for seed in range(20):
        view = augment(paper, config, seed)
        assert torch.allclose(view, standardise(paper, "imagenet"), atol=0.05)


def test_a_shift_moves_a_dot_by_at_most_its_share() -> None:
    dot = torch.zeros(3, 32, 16, dtype=torch.uint8)
    dot[:, 16, 8] = 255
    found = []
    for seed in range(40):
        view = augment(dot, ImageConfig(**PLAIN | {"shift": 0.25}), seed)
        found.append(divmod(view[0].argmax().item(), 16))
    rows, columns = np.array(found).T
    assert abs(rows - 16).max() in range(5, 9)
    assert abs(columns - 8).max() in range(2, 5)


def test_jitter_changes_colours_and_keeps_places() -> None:
    grey = torch.full((3, 32, 16), 100, dtype=torch.uint8)
    view = augment(grey, ImageConfig(**PLAIN | {"jitter": 0.5}), seed=3)
    assert (view - view[:, :1, :1]).abs().max() < 1e-6
    assert not torch.allclose(view, standardise(grey, "imagenet"))


FULL = ImageConfig(height=32, width=16, rotate=10, shift=0.1, zoom=0.1, shear=5, jitter=0.2)


def test_a_seed_fixes_the_view_and_nothing_else(image: torch.Tensor) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = augment(image, FULL, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(augment(image, FULL, seed=7), first)
    assert not torch.equal(augment(image, FULL, seed=8), first)


def test_the_image_itself_is_never_changed() -> None:
    image = torch.full((3, 32, 16), 9, dtype=torch.uint8)  # of the final size: nothing to resize
    for seed in range(10):
        augment(image, FULL, seed)
    assert (image == 9).all()


def test_a_random_crop_keeps_a_share_of_the_area_and_narrows() -> None:
    """T_mmcl of methods.md 1.2: area (0.64, 1), width to height (1/3, 1/2) for an output of 256 x 128."""
    height, width = 240, 120
    across = torch.arange(width, dtype=torch.uint8).expand(3, height, width)
    down = torch.arange(height, dtype=torch.uint8)[:, None].expand(3, height, width)
    config = ImageConfig(**PLAIN | {"height": 128, "width": 64, "crop": 0.64})
    shares, ratios = [], []
    for seed in range(60):
        columns, rows = (
            (lambda x: x.max() - x.min())(augment(image, config, seed)[0]) * 58.395
            for image in (across, down)
        )
        shares.append(float(columns * rows) / (height * width))
        ratios.append(float(columns / rows))
    assert 0.6 < min(shares) < 0.75 < max(shares) < 1.05
    assert 0.31 < min(ratios) < 0.4 < 0.45 < max(ratios) < 0.52


def test_no_crop_fits_a_wide_image_for_a_narrow_network() -> None:
    config = ImageConfig(**PLAIN | {"crop": 0.99})
    wide = torch.randint(0, 256, (3, 20, 200), dtype=torch.uint8)
    assert torch.equal(augment(wide, config, 0), standardise(resized(wide), "imagenet"))
