from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any
from xml.etree import ElementTree

import pytest
from torch import nn

from compress.core.config import Config
from compress.core.svg import text_width
from evaluators.tasks import Task
from spaces.architecture import Architecture, Decision, where
from spaces.drawing import CellGraph, Node, draw_cells, draw_chain, draw_fabric
from spaces.layers import Layer
from spaces.space import Space

SVG = "{http://www.w3.org/2000/svg}"
Box = tuple[float, float, float, float]  # left, top, right, bottom


def parse(picture: str) -> ElementTree.Element:
    root = ElementTree.fromstring(picture)
    assert root.tag == f"{SVG}svg"
    left, top, *size = root.attrib["viewBox"].split()
    assert (left, top, size) == ("0", "0", [root.attrib["width"], root.attrib["height"]])
    return root


def boxes(root: ElementTree.Element, *classes: str) -> list[Box]:
    found = []
    for each in root.iter(f"{SVG}rect"):
        if each.get("class") in classes:
            x, y, width, height = (float(each.attrib[name]) for name in ("x", "y", "width", "height"))
            found.append((x, y, x + width, y + height))
    return found


def texts(root: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in root.iter(f"{SVG}text")]


def text_boxes(root: ElementTree.Element) -> list[Box]:
    found = []
    for each in root.iter(f"{SVG}text"):
        size = float(each.attrib["font-size"])
        wide = text_width(each.text or "", size)
        left = float(each.attrib["x"]) - (wide / 2 if each.get("text-anchor") == "middle" else 0)
        base = float(each.attrib["y"])
        found.append((left, base - 0.75 * size, left + wide, base + 0.2 * size))
    return found


def overlap(a: Box, b: Box) -> bool:
    slack = 0.2  # coordinates are rounded to a tenth
    return a[0] + slack < b[2] and b[0] + slack < a[2] and a[1] + slack < b[3] and b[1] + slack < a[3]


def check_tidy(picture: str, *classes: str) -> ElementTree.Element:
    """Boxes of `classes` and texts stay inside the picture; no two boxes and no two texts overlap."""
    root = parse(picture)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for group in (boxes(root, *classes), text_boxes(root)):
        assert group
        assert all(0 <= x1 and 0 <= y1 and x2 <= width and y2 <= height for x1, y1, x2, y2 in group)
        assert not [(a, b) for a, b in combinations(group, 2) if overlap(a, b)]
    return root


class Toy(Space):
    """Stages of two to four layers, as many as the test says, on top of a stem."""

    Config = Config
    name = "toy"
    listed = True

    def __init__(self, stages: int = 3, kernels: Sequence[int] = (3, 5, 7)) -> None:
        self.stages, self.kernels = stages, tuple(kernels)
        super().__init__(Config())

    def _decisions(self) -> Sequence[Decision]:
        found = []
        for stage in range(1, self.stages + 1):
            found.append(Decision(f"stage{stage}.depth", (2, 3, 4)))
            for layer in range(1, 5):
                when = where(f"stage{stage}.depth", *range(layer, 5)) if layer > 2 else None
                found.append(Decision(f"stage{stage}.layer{layer}.kernel", self.kernels, when))
        return found

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        raise NotImplementedError

    def _layers(self, arch: Architecture, task: Task) -> list[Layer] | None:
        if not self.listed:
            return None
        size = task.img_size
        rows = [Layer("stem", "conv k3", 8, size, 1, 100, 1000)]
        for stage in range(1, self.stages + 1):
            for layer in range(1, arch.number(f"stage{stage}.depth") + 1):
                stride = 2 if layer == 1 and size > 1 else 1
                size //= stride
                operation = f"mbconv k{arch[f'stage{stage}.layer{layer}.kernel']} e6 squeeze-and-excite hswish"
                rows.append(Layer(f"stage{stage}.layer{layer}", operation, 8 * 2**stage, size, stride, 100, 1000))
        return [*rows, Layer("a_very_long_name_of_a_head", "linear", task.num_outputs, 1, 1, 100, 1000)]


@pytest.mark.parametrize("stages", [1, 3, 15])
def test_a_chain_has_one_box_per_layer_and_nothing_overlaps(stages: int) -> None:
    space = Toy(stages)
    arch = space.sample(random.Random(stages))
    rows = space.layers(arch) or []
    root = check_tidy(draw_chain(space, arch, None), "layer")
    assert len(boxes(root, "layer")) == len(rows)
    shown = texts(root)
    assert [text for text in shown if text.isdigit()] == [str(row.out_channels) for row in rows]
    assert len([text for text in shown if text.startswith("÷2")]) == sum(row.stride == 2 for row in rows)
    assert f"{len(rows)} layers" in shown[1]
    assert {"conv", "mbconv", "linear", "stem", "stage1"} <= set(shown)


def test_heights_follow_the_map_and_widths_the_channels() -> None:
    space = Toy(3)
    arch = space.sample(random.Random(0))
    rows = space.layers(arch, space.task(img_size=64)) or []
    found = boxes(parse(draw_chain(space, arch, 64)), "layer")
    for key, measure in ((lambda row: row.size, 1), (lambda row: row.out_channels, 0)):
        sides = [box[measure + 2] - box[measure] for box in found]
        values = [key(row) for row in rows]
        assert [sides[i] < sides[j] for i, j in combinations(range(len(rows)), 2) if values[i] != values[j]] == [
            values[i] < values[j] for i, j in combinations(range(len(rows)), 2) if values[i] != values[j]
        ]


def test_a_space_shows_its_exact_count_and_what_each_group_of_decisions_offers() -> None:
    space = Toy(5)
    root = check_tidy(draw_chain(space, None, None), "choice")
    shown = texts(root)
    assert f"{space.count():,} architectures · 25 decisions" in shown
    assert {"stage1–5", "depth", "layer1–4.kernel"} <= set(shown)
    assert len(boxes(root, "choice")) == 6


def test_of_many_choices_the_first_and_the_last_are_shown() -> None:
    shown = texts(check_tidy(draw_chain(Toy(1, range(1, 400, 2)), None, None), "choice"))
    assert {"1", "3", "…", "399"} <= set(shown)
    assert "301" not in shown


def test_an_architecture_without_layers_is_drawn_by_its_choices() -> None:
    space = Toy(4, range(1, 400, 2))
    space.listed = False
    arch = space.sample(random.Random(5))
    root = check_tidy(draw_chain(space, arch, None), "choice")
    chosen = [each.text for each in root.iter(f"{SVG}text") if each.get("fill") == "#ffffff"]
    assert sorted(map(str, chosen)) == sorted(map(str, arch.values()))


def cell(name: str, blocks: Sequence[Any], concat: Sequence[int]) -> CellGraph:
    """Return a NASNet cell of blocks ((input, operation), (input, operation)); inputs 0 and 1 are those of the cell."""
    nodes, edges = [Node("0", "previous", "input"), Node("1", "one before", "input")], []
    for block, sides in enumerate(blocks, 2):
        nodes.append(Node(str(block), "+", "combine"))
        for side, (source, operation) in enumerate(sides):
            nodes.append(Node(f"{block}.{side}", operation, "operation"))
            edges += [(str(source), f"{block}.{side}"), (f"{block}.{side}", str(block))]
    nodes.append(Node("output", "concat", "output"))
    return CellGraph(name, tuple(nodes), (*edges, *((str(index), "output") for index in concat)))


def random_cell(generator: random.Random) -> CellGraph:
    names = ["sep 3x3", "sep 7x7", "avg 3x3", "identity", "conv 1x7 7x1"]
    blocks = [[(generator.randrange(b), generator.choice(names)) for _ in range(2)] for b in range(2, 7)]
    used = {source for sides in blocks for source, _ in sides}
    return cell("a cell", blocks, [index for index in range(7) if index not in used])


def curve_points(path: str) -> Iterator[tuple[float, float]]:
    """Yield points along `M x y C x y x y x y`."""
    numbers = list(map(float, re.findall(r"-?[\d.]+", path)))
    corners = list(zip(numbers[::2], numbers[1::2], strict=True))
    for step in range(1, 20):
        t = step / 20
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
        yield tuple(sum(w * c[axis] for w, c in zip(weights, corners, strict=True)) for axis in (0, 1))  # type: ignore[misc]


@pytest.mark.parametrize("seed", range(12))
def test_cells_have_tidy_nodes_and_no_edge_crosses_one(seed: int) -> None:
    generator = random.Random(seed)
    cells = [random_cell(generator), random_cell(generator)]
    root = check_tidy(draw_cells("cells", "random", cells), "input", "operation", "combine", "output")
    nodes = boxes(root, "input", "operation", "combine", "output")
    assert len(nodes) == 2 * (2 + 10 + 5 + 1)
    assert set(texts(root)) >= {node.label for each in cells for node in each.nodes}
    edges = [each.attrib["d"] for each in root.iter(f"{SVG}path") if each.get("class") == "edge"]
    assert len(edges) >= sum(len(each.edges) for each in cells) - 10  # edges of one source may share their way
    for x, y in (point for edge in edges for point in curve_points(edge)):
        assert not [box for box in nodes if box[0] < x < box[2] and box[1] + 0.2 < y < box[3] - 0.2]


def test_nodes_stand_below_what_they_use_and_the_first_input_stands_left() -> None:
    blocks = [
        ((0, "sep 5x5"), (1, "sep 7x7")), ((0, "max 3x3"), (1, "sep 7x7")), ((0, "avg 3x3"), (1, "sep 5x5")),
        ((3, "identity"), (2, "avg 3x3")), ((2, "sep 3x3"), (0, "max 3x3")),
    ]  # fmt: skip
    root = parse(draw_cells("NASNet-A", "", [cell("reduction cell", blocks, [3, 4, 5, 6])]))
    first, second = boxes(root, "input")
    assert first[0] < second[0]
    tops = [{box[1] for box in boxes(root, name)} for name in ("input", "operation", "combine", "output")]
    assert max(tops[0]) < min(tops[1]) < min(tops[2]) < max(tops[2]) < max(tops[3])
    assert [len(found) for found in tops] == [1, 2, 2, 1]


def test_a_fabric_shows_every_option_and_marks_the_path() -> None:
    options = {
        (row, column): ["ResConv", "ResAtt"] if row > 1 else ["ResConv"]
        for row in range(4)
        for column in range(16)
        if row <= column + 1
    }
    path = [(0, "ResConv"), (1, "ResConv"), *[(2, "ResConv")] * 3, *[(3, "ResAtt")] * 11]
    scales = ["56 x 56", "28 x 28", "14 x 14", "7 x 7"]
    root = check_tidy(draw_fabric("T0", "2,818,103 paths", scales, 16, options, path, (4, 4, 4, 4)), "option")
    assert len(boxes(root, "option")) == sum(map(len, options.values()))
    chosen = sorted(boxes(root, "chosen"))
    assert len(chosen) == 16
    assert all(box in boxes(root, "option") for box in chosen)
    assert [box[1] for box in chosen] == sorted(box[1] for box in chosen)  # larger maps stand above
    assert len([each for each in root.iter(f"{SVG}line") if each.get("class") == "path"]) == 15
    assert len(boxes(root, "group")) == 4
    assert {*scales, "ResConv", "ResAtt", "Conv", "Att", "block 1", "block 4", "16"} <= set(texts(root))
    alone = check_tidy(draw_fabric("T0", "", scales, 16, options, None), "option")
    assert not boxes(alone, "chosen")


def test_long_and_odd_texts_are_shortened_and_escaped() -> None:
    graph = CellGraph("c", (Node("a", "<in> & out", "input"), Node("b", "end", "output")), (("a", "b"),))
    root = check_tidy(draw_cells("a very long title " * 20, "a subtitle " * 40, [graph]), "input", "output")
    assert "<in> & out" in texts(root)
