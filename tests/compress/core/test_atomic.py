"""Files that commands write never take the place of something else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from compress.core.atomic import check_file, write_text
from compress.core.errors import InputError, NotWritten


def test_a_device_is_not_replaced_and_a_link_stays(tmp_path: Path) -> None:
    device, file, link = tmp_path / "device", tmp_path / "there" / "file", tmp_path / "link"
    os.mkfifo(device)
    with pytest.raises(NotWritten, match="device: it is no regular file"):
        write_text(device, "x")
    assert device.is_fifo()
    link.symlink_to(file)
    for text in ("one", "two"):
        write_text(link, text)
        assert link.is_symlink() and file.read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device", "link", "there"]


def test_a_file_of_another_kind_stays_as_it_is(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("version: 1")
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(InputError, match=r"^--output  .*mine\.yaml is there already and is no \.onnx file"):
        check_file(recipe, "--output", ".onnx")
    with pytest.raises(InputError, match=r"pipe\.onnx is there already and is no \.onnx file"):
        check_file(tmp_path / "pipe.onnx", "--output", ".onnx")
    with pytest.raises(InputError, match=r"is a directory; name a file in it, such as .*new\.onnx$"):
        check_file(tmp_path, "--output", ".onnx")
    (tmp_path / "old.onnx").touch()
    for name in ("old.onnx", "new.txt", "folder/new.onnx"):
        check_file(tmp_path / name, "--output", ".onnx")
