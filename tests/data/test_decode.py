import io
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reid_core.data import decode as module
from reid_core.data.decode import ImageStore, decode, load


def picture(height: int = 64, width: int = 32) -> Image.Image:
    """A smooth colour picture."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *[("JPEG", mode) for mode in ("RGB", "L", "CMYK")],
        *[("PNG", mode) for mode in ("RGB", "L", "LA", "RGBA", "P", "1")],
        *[("WEBP", mode) for mode in ("RGB", "RGBA")],
        *[("TIFF", mode) for mode in ("RGB", "CMYK")],
        ("GIF", "P"),
        ("BMP", "RGB"),
    ],
)
def test_every_format_and_mode_equals_pillow(kind: str, mode: str) -> None:
    content = encode(picture().convert(mode), kind)
    image = decode(content)
    assert image.shape == (3, 64, 32)
    assert image.dtype == torch.uint8
    assert torch.equal(image, as_tensor(Image.open(io.BytesIO(content))))


def test_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert decode(encode(picture(), "JPEG", exif=exif)).shape == (3, 32, 64)


def test_sixteen_bits_keep_the_upper_eight() -> None:
    deep = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    image = decode(encode(Image.fromarray(deep), "PNG"))
    assert image[0].tolist() == [[0, 0, 1, 255]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_file_cut_short_is_refused(kind: str) -> None:
    content = encode(picture(256, 128), kind)
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        with pytest.raises(ValueError, match=r"no whole|not an image"):
            decode(content[: int(share * len(content))])


@pytest.mark.parametrize("lost", [1, 2, 3, 17])
def test_a_jpeg_without_its_last_bytes_is_refused(lost: int) -> None:
    with pytest.raises(ValueError, match="truncated"):
        decode(encode(picture(), "JPEG")[:-lost])


def test_a_jpeg_whose_end_is_zeros_is_refused() -> None:
    content = encode(picture(256, 128), "JPEG")
    with pytest.raises(ValueError, match="truncated"):
        decode(content[: len(content) // 2] + bytes(len(content) // 2))


def test_a_png_with_one_wrong_byte_is_refused() -> None:
    content = bytearray(encode(picture(), "PNG"))
    content[content.index(b"IEND") - 9] ^= 1  # of the checksum of all pixels
    with pytest.raises(ValueError, match="incorrect data check"):
        decode(bytes(content))


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8\xff\xe0junk", b"\x89PNG\r\n\x1a\n"])
def test_no_image_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"empty|no whole|not an image"):
        decode(content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "x.jpg").write_bytes(encode(picture(), "JPEG"))
    return folder


def test_load_resizes_as_pillow_does(root: Path) -> None:
    image = load(ImageStore(str(root)), "a/x.jpg", 40, 48)
    want = as_tensor(Image.open(root / "a/x.jpg").resize((48, 40), Image.Resampling.BICUBIC))
    assert image.dtype == torch.uint8
    assert (image.int() - want.int()).abs().max() <= 1


def test_load_names_the_broken_file(root: Path) -> None:
    (root / "bad.jpg").write_bytes((root / "a/x.jpg").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"bad\.jpg.*truncated.*replace"):
        load(ImageStore(str(root)), "bad.jpg", 32, 32)


def test_the_cache_is_read_when_the_root_is_gone(root: Path, tmp_path: Path) -> None:
    store = ImageStore(str(root), str(tmp_path / "cache"))
    content = store.read("a/x.jpg")
    (root / "a" / "x.jpg").unlink()
    assert store.read("a/x.jpg") == content
    with pytest.raises(FileNotFoundError, match=r"x\.jpg"):
        ImageStore(str(root)).read("a/x.jpg")


def test_two_roots_share_a_cache_folder(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "a").mkdir(parents=True)
    (other / "a" / "x.jpg").write_bytes(b"other")
    cache = str(tmp_path / "cache")
    assert ImageStore(str(root), cache).read("a/x.jpg") != b"other"
    assert ImageStore(str(other), cache).read("a/x.jpg") == b"other"


def test_a_uri_is_a_root(root: Path) -> None:
    assert ImageStore(root.as_uri()).read("a/x.jpg") == (root / "a" / "x.jpg").read_bytes()


def test_an_emptied_cache_file_is_fetched_again(root: Path, tmp_path: Path) -> None:
    store = ImageStore(str(root), str(tmp_path / "cache"))
    content = store.read("a/x.jpg")
    (kept,) = [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    kept.write_bytes(b"")
    assert store.read("a/x.jpg") == content
    assert kept.read_bytes() == content


def test_a_full_disk_is_logged_once_and_loses_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Path, _content: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    content = (root / "a" / "x.jpg").read_bytes()
    monkeypatch.setattr(module.Path, "write_bytes", full)
    store = ImageStore(str(root), str(tmp_path / "cache"))
    with caplog.at_level(logging.WARNING):
        assert [store.read("a/x.jpg") for _ in range(3)] == [content] * 3
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


def test_a_store_travels_between_processes(root: Path, tmp_path: Path) -> None:
    store = ImageStore(str(root), str(tmp_path / "cache"))
    content = store.read("a/x.jpg")
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.root, copy.cache) == (store.root, store.cache)
    assert copy.read("a/x.jpg") == content
