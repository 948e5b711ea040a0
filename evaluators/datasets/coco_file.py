"""Annotation files of COCO: read, and checked in every part that is used."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.core.errors import InputError
from evaluators.datasets.boxes import Corners, Wrong, corners, within

SECTIONS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class CocoImage:
    """An image that the file names."""

    file_name: str
    size: tuple[int, int]


@dataclass(frozen=True)
class CocoObject:
    """An object in an image; `outline` is what pycocotools makes a mask of, polygons or run lengths."""

    box: Corners
    category: int
    crowd: bool
    outline: Any


@dataclass(frozen=True)
class CocoFile:
    """What an annotation file says: images, the objects of each, and category names, all by id."""

    images: Mapping[int, CocoImage]
    objects: Mapping[int, list[CocoObject]]
    categories: Mapping[int, str]


def read_coco(path: Path, key: str, wrong: Wrong) -> CocoFile:
    """Return what the annotation file at `path` says; InputError, naming the recipe's `key`, where it is wrong."""
    if not path.is_file():
        raise InputError(f"data.{key}: there is no file {str(path)!r}; annotations in COCO's format (json) are needed")
    return _read(str(path), path.stat().st_mtime_ns, key, wrong)


@functools.lru_cache(maxsize=2)
def _read(path: str, modified: int, key: str, wrong: Wrong) -> CocoFile:
    """Read a file; `modified` makes a changed file a new one for the cache."""
    where = f"data.{key}: {path!r}"
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:  # json's errors and those of its encoding are ValueErrors
        raise InputError(f"{where} is damaged, or no json ({error})") from error
    if not isinstance(content, dict) or any(not isinstance(content.get(name), list) for name in SECTIONS):
        raise InputError(f"{where} has not the lists of COCO's format; needed: {', '.join(SECTIONS)}")
    images = {number: _image(place, entry) for number, place, entry in _entries(where, content, "images")}
    categories = {
        number: str(_of(place, entry, "name", str)) for number, place, entry in _entries(where, content, "categories")
    }
    if not images or not categories:
        raise InputError(f"{where} has no {'categories' if images else 'images'}; at least one is needed")
    objects: dict[int, list[CocoObject]] = {}
    for number, annotation in enumerate(content["annotations"]):
        place = f"{where}: annotation {annotation.get('id', number) if isinstance(annotation, dict) else number}"
        image = _known(place, annotation, "image_id", images)
        category = _known(place, annotation, "category_id", categories)
        box = within(place, corners(place, annotation.get("bbox"), "xywh"), images[image].size, wrong)
        if box is not None:
            found = CocoObject(box, category, _crowd(place, annotation), annotation.get("segmentation"))
            objects.setdefault(image, []).append(found)
    if all(each.crowd for found in objects.values() for each in found):
        others = " but crowds" if objects else ""
        raise InputError(f"{where} has no object in any image{others}; at least one is needed")
    return CocoFile(images, objects, categories)


def _entries(where: str, content: dict[str, list[Any]], section: str) -> Iterator[tuple[int, str, Any]]:
    """Yield id, place and content of the entries of a section; InputError where an id is absent or used twice."""
    seen: set[int] = set()
    for number, entry in enumerate(content[section]):
        ident = _of(f"{where}: number {number} of {section}", entry, "id", int)
        if ident in seen:
            raise InputError(f"{where}: two of {section} have the id {ident}; each needs its own")
        seen.add(ident)
        yield ident, f"{where}: the id {ident} of {section}", entry


def _image(place: str, entry: Any) -> CocoImage:
    size = _of(place, entry, "height", int), _of(place, entry, "width", int)
    if min(size) < 1:
        raise InputError(f"{place} has {size[1]}x{size[0]} pixels; allowed: 1 and up")
    return CocoImage(_of(place, entry, "file_name", str), size)


def _known(place: str, entry: Any, key: str, known: Mapping[int, Any]) -> int:
    ident: int = _of(place, entry, key, int)
    if ident not in known:
        what = "images" if key == "image_id" else "categories"
        some = ", ".join(map(str, sorted(known)[:5]))
        raise InputError(
            f"{place} has the {key} {ident}, which none of the {what} has; allowed: their ids, such as {some}"
        )
    return ident


def _crowd(place: str, annotation: Mapping[str, Any]) -> bool:
    value = annotation.get("iscrowd", 0)
    if not isinstance(value, int) or value not in (0, 1):
        raise InputError(f"{place} has iscrowd: {value!r}; allowed: 0, 1")
    return bool(value)


def _of(place: str, entry: Any, key: str, kind: type) -> Any:
    if not isinstance(entry, dict):
        raise InputError(f"{place} is {entry!r}; a mapping with {key} is needed")
    value = entry.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        name = "a whole number" if kind is int else "text"
        raise InputError(f"{place} has {'no ' + key if value is None else f'{key}: {value!r}'}; {name} is needed")
    return value
