"""The width graph: which positions of which tensors belong together, and what a plan removes."""
