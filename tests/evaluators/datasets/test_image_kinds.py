"""What is inside image files and their folders: levels, colours, orientation, what is no image, what is broken."""

from __future__ import annotations

import struct
import sys
from importlib.machinery import ModuleSpec
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from compress.core.errors import InputError
from evaluators.datasets import Data, DataConfig
from evaluators.datasets.decoding import read
from evaluators.datasets.mask_files import MaskFiles, MaskReader
from evaluators.tasks import DEFAULT

RAMP = np.linspace(0, 1, 256).reshape(16, 16)
"""256 levels of grey from black to white."""


def set_of(root: Path, *, image: str | None = None, **config: Any) -> Data:
    """Open train/ and val/ under `root`, with the file `image` as the only one of their first class."""
    if image is not None:
        for part in ("train", "val"):
            for name in ("a", "b"):
                (root / part / name).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16)).save(root / part / name / "black.png")
            (root / part / "a" / "black.png").unlink()
            (root / part / "a" / image).write_bytes((root / image).read_bytes())
    settings = {"image_size": 16, "crop_pct": 1, "mean": [0], "std": [1], "workers": 0} | config
    data = (
        TypeAdapter[Any](DataConfig)
        .validate_python({"name": "imagefolder", "path": str(root), **settings})
        .load(DEFAULT)
    )
    assert data is not None
    return data


def seen(root: Path, image: str, **config: Any) -> torch.Tensor:
    """Return what a model sees of an image file, (C, 16, 16) in 0..1."""
    test = set_of(root, image=image, **config).test
    assert test is not None
    return next(iter(test.batches())).inputs[0]


def refused(root: Path) -> str:
    with pytest.raises(InputError) as caught:
        set_of(root)
    (sentence,) = caught.value.problems
    return sentence


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("grey16.png", (RAMP * 65535).round().astype(np.uint16)),
        ("grey16.tif", (RAMP * 65535).round().astype(np.uint16)),
        ("big_endian.tif", (RAMP * 65535).round().astype(">u2")),
        ("grey32.tif", (RAMP * 65535).round().astype(np.int32)),
        ("grey16.pgm", (RAMP * 65535).round().astype(np.int32)),
        ("grey16.jp2", (RAMP * 65535).round().astype(np.uint16)),
        ("floats.tif", RAMP.astype(np.float32)),
        ("floats.pfm", RAMP.astype(np.float32)),
        ("grey8.png", (RAMP * 255).round().astype(np.uint8)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_levels_reach_the_model(tmp_path: Path, name: str, levels: Any, channels: int) -> None:
    Image.fromarray(levels).save(tmp_path / name)
    assert torch.allclose(
        seen(tmp_path, name, channels=channels),
        torch.tensor(RAMP, dtype=torch.float32).expand(channels, -1, -1),
        atol=1e-5,
    )


def patched(content: bytes, tag: int, old: int, new: int) -> bytes:
    """Return a TIFF with another value of a tag."""
    before = struct.pack("<HHIH", tag, 3, 1, old)
    assert content.count(before) == 1
    return content.replace(before, struct.pack("<HHIH", tag, 3, 1, new))


@pytest.mark.parametrize("levels", [(RAMP * 65535).round().astype(np.uint16), RAMP.astype(np.float32)])
def test_a_tiff_may_say_that_white_is_zero(tmp_path: Path, levels: Any) -> None:
    Image.fromarray(levels).save(tmp_path / "x.tif")
    (tmp_path / "x.tif").write_bytes(patched((tmp_path / "x.tif").read_bytes(), 262, 1, 0))
    assert torch.allclose(seen(tmp_path, "x.tif")[0], 1 - torch.tensor(RAMP, dtype=torch.float32), atol=1e-5)


def test_a_tiff_of_twelve_bits_is_white_at_4095(tmp_path: Path) -> None:
    levels = (RAMP * 4095).round().astype(np.uint16)
    one, two = levels[:, ::2], levels[:, 1::2]
    packed = np.stack([one >> 4, (one & 15) << 4 | two >> 8, two & 255], 2).reshape(16, 24).astype(np.uint8)
    Image.fromarray(packed).save(tmp_path / "x.tif")
    content = patched((tmp_path / "x.tif").read_bytes(), 258, 8, 12)
    (tmp_path / "x.tif").write_bytes(
        content.replace(struct.pack("<HHII", 256, 4, 1, 24), struct.pack("<HHII", 256, 4, 1, 16))
    )
    assert torch.allclose(seen(tmp_path, "x.tif")[0], torch.tensor(RAMP, dtype=torch.float32), atol=2e-4)


def test_deep_levels_are_not_rounded_to_bytes(tmp_path: Path) -> None:
    Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16)).save(tmp_path / "dark.png")
    assert torch.equal(seen(tmp_path, "dark.png")[0] * 65535, torch.arange(256.0).reshape(16, 16))


def test_deep_images_are_resized_and_augmented(tmp_path: Path) -> None:
    Image.fromarray((RAMP.repeat(2, 0) * 65535).astype(np.uint16)).save(tmp_path / "x.png")
    data = set_of(tmp_path, image="x.png", random_erase=0.5, image_size=12, crop_pct=0.875)
    assert data.train is not None and data.test is not None
    for batch in (*data.train.epoch(0), *data.test.batches()):
        assert batch.inputs.shape == (2, 3, 12, 12) and batch.inputs[0].std() > 0.05
    train = set_of(tmp_path, image="x.png", auto_augment="rand-m9-mstd0.5-inc1").train
    assert train is not None
    with pytest.raises(InputError, match=r"a/x\.png.* data\.auto_augment .*null"):
        list(train.epoch(0))


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        (np.array([[0.0, 255.0]], np.float32), "floats from 0 to 255; allowed: 0 (black) to 1 (white)"),
        (np.array([[0.0, np.nan]], np.float32), "nan"),
        (np.array([[-1024, 3071]], np.int32), "whole numbers from -1024 to 3071; allowed: 0 (black) to 65535 (white)"),
        (np.array([[0, 65536]], np.int32), "65536"),
    ],
)
def test_levels_of_an_unknown_range_are_refused(tmp_path: Path, levels: Any, words: str) -> None:
    Image.fromarray(levels).save(tmp_path / "x.tif")
    with pytest.raises(InputError) as caught:
        seen(tmp_path, "x.tif")
    assert str(tmp_path / "val" / "a" / "x.tif") in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        ("RGBA", "png"),
        ("LA", "png"),
        ("P", "png"),
        ("P", "gif"),
        ("1", "png"),
        ("CMYK", "tif"),
        ("YCbCr", "jpg"),
        ("LAB", "tif"),
        ("L", "jpg"),
    ],
)
def test_other_modes_show_the_same_colours(tmp_path: Path, mode: str, ending: str) -> None:
    colour = (255, 255, 255) if mode in ("LA", "1", "L") else (255, 0, 0)
    Image.new("RGB", (16, 16), colour).convert(mode).save(tmp_path / f"x.{ending}")
    expected = torch.tensor(colour).view(3, 1, 1) / 255
    assert torch.allclose(seen(tmp_path, f"x.{ending}"), expected.expand(3, 16, 16), atol=0.02)


@pytest.mark.filterwarnings("error")
def test_colours_below_transparency_count(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (10, 200, 30, 0)).save(tmp_path / "x.png")
    assert np.asarray(read(str(tmp_path / "x.png")))[0, 0].tolist() == [10, 200, 30]
    palette = Image.new("RGB", (4, 4), (10, 200, 30)).quantize(2)
    palette.save(tmp_path / "p.png", transparency=bytes([0, 255]))
    assert np.asarray(read(str(tmp_path / "p.png")))[0, 0].tolist() == [10, 200, 30]


def test_the_cameras_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "x.jpg", exif=exif)
    turned = np.asarray(read(str(tmp_path / "x.jpg")))
    assert turned.shape == (16, 8, 3) and turned[:7].min() > 200 and turned[9:].max() < 50
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(tmp_path / "x.png", exif=exif)
    deep = read(str(tmp_path / "x.png"))
    assert isinstance(deep, torch.Tensor) and torch.equal(
        deep[0], torch.arange(16).lt(8).float()[:, None].expand(16, 8)
    )


def test_pixels_stay_as_they_are_stored_where_boxes_or_masks_are_for_those(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
        stored, upright, other = (
            np.asarray(read(str(tmp_path / "x.png"), size)) for size in ((8, 16), (16, 8), (9, 9))
        )
        assert np.array_equal(upright, other) and np.array_equal(upright, read(str(tmp_path / "x.png")))
        assert np.array_equal(stored, pixels if orientation >= 5 else upright)


def test_a_mask_tells_which_way_its_image_is_meant(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 8)).save(tmp_path / "x.jpg", exif=exif)
    for name, size in (("stored", (16, 8)), ("upright", (8, 16))):
        Image.new("L", size).save(tmp_path / f"{name}.png")
        image, mask = MaskFiles([(tmp_path / "x.jpg", tmp_path / f"{name}.png")], MaskReader(2))(0)
        assert image.size == size and mask.shape == size[::-1]


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("x.gif", "x.webp", "x.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert np.asarray(read(str(tmp_path / name)))[0, 0, 0] > 250


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["cut.jpg", "cut.png", "empty.png", "text.jpg", "cut.tif", "header.png", "link.jpg"])
def test_a_broken_image_is_named(tmp_path: Path, damage: str, workers: int) -> None:
    kind, ending = damage.split(".")
    whole = tmp_path / f"whole.{ending}"
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole)
    content = whole.read_bytes()
    broken = {
        "cut": content[: len(content) * 2 // 3],
        "empty": b"",
        "text": b"no image",
        "header": content[:20],
        "link": b"",
    }
    (tmp_path / damage).write_bytes(broken[kind])
    test = set_of(tmp_path, image=damage, workers=workers).test
    named = tmp_path / "val" / "a" / damage
    if kind == "link":
        named.unlink()
        named.symlink_to(tmp_path / "absent.jpg")
    assert test is not None
    with pytest.raises(InputError) as caught:
        list(test.batches())
    assert str(caught.value).startswith(f"data: cannot read image {named}: ") and "\n" not in str(caught.value)


def test_hidden_and_foreign_entries_are_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png")
    set_of(tmp_path, image="x.png")
    for part in ("train", "val"):
        for folder in (".ipynb_checkpoints", ".git", "__MACOSX", "@eaDir", "a/.ipynb_checkpoints", "b/__MACOSX"):
            (tmp_path / part / folder).mkdir()
            (tmp_path / part / folder / "copy.jpg").write_bytes(b"")
        for file in (
            ".DS_Store",
            "notes.txt",
            "a/._x.png",
            "a/.hidden.jpg",
            "a/Thumbs.db",
            "a/boxes.xml",
            "a/x.png.part",
        ):
            (tmp_path / part / file).write_bytes(b"")
        (tmp_path / part / "a" / "more").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / part / "a" / "more" / "Y.JPEG")
    data = set_of(tmp_path)
    assert data.class_names == ["a", "b"] and data.test is not None
    assert next(iter(data.test.batches())).targets.tolist() == [0, 0, 1]


def test_folders_that_are_no_classes_of_images_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png")
    set_of(tmp_path, image="x.png")
    (tmp_path / "val" / "a" / "x.png").rename(tmp_path / "val" / "a" / "x.npy")
    assert "no images of the class 'a'" in refused(tmp_path) and ".png" in refused(tmp_path)
    (tmp_path / "val" / "a" / "x.npy").rename(tmp_path / "val" / "a" / "x.png")
    for part, names in (("train", ["cow", "dog"]), ("val", ["Dog"])):
        for name in names:
            (tmp_path / part / name).mkdir()
            Image.new("RGB", (8, 8)).save(tmp_path / part / name / "x.png")
    assert "'cow' only in train/, 'dog' only in train/, 'Dog' only in val/" in refused(tmp_path)


class Hub:
    """What timm makes of a data set of the hub: files and labels, and names of the classes."""

    class_to_idx = {"cat": 0, "dog": 1}  # noqa: RUF012

    def __init__(self, rows: list[tuple[bytes, int]]) -> None:
        self.rows = rows

    def __getitem__(self, index: int) -> tuple[BytesIO, int]:
        return BytesIO(self.rows[index][0]), self.rows[index][1]

    def iter_targets(self) -> list[int]:
        return [label for _, label in self.rows]


def hub(monkeypatch: pytest.MonkeyPatch, rows: list[tuple[bytes, int]]) -> Data:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(__spec__=ModuleSpec("datasets", None)))
    monkeypatch.setattr("timm.data.dataset_factory.create_dataset", lambda *_, **__: SimpleNamespace(reader=Hub(rows)))
    config = {
        "name": "huggingface",
        "dataset": "pets",
        "image_size": 16,
        "crop_pct": 1,
        "mean": [0],
        "std": [1],
        "workers": 0,
    }
    data = TypeAdapter[Any](DataConfig).validate_python(config).load(DEFAULT)
    assert data is not None
    return data


def test_a_hub_set_keeps_levels_and_names_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    content = BytesIO()
    Image.fromarray((RAMP * 65535).round().astype(np.uint16)).save(content, "PNG")
    whole = content.getvalue()
    test = hub(monkeypatch, [(whole, 1), (whole, 0)]).test
    assert test is not None
    batch = next(iter(test.batches()))
    images, labels = batch.inputs, batch.targets
    assert torch.allclose(images[0, 0], torch.tensor(RAMP, dtype=torch.float32), atol=1e-5) and labels.tolist() == [
        1,
        0,
    ]
    broken = hub(monkeypatch, [(whole, 1), (whole[: len(whole) // 2], 0)]).test
    assert broken is not None
    with pytest.raises(InputError, match="cannot read image row 1: "):
        list(broken.batches())
    with pytest.raises(InputError, match=r"data.label_key: 'label' of 'pets' holds the label -1; allowed: 0 to 1"):
        hub(monkeypatch, [(whole, 1), (whole, -1)])
