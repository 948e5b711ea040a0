"""Pictures of architectures and spaces as stand-alone SVG files."""

from __future__ import annotations

from spaces.drawing.cells import CellGraph, Node, draw_cells
from spaces.drawing.chain import draw_chain
from spaces.drawing.fabric import draw_fabric

__all__ = ["CellGraph", "Node", "draw_cells", "draw_chain", "draw_fabric"]
