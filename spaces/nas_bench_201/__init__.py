"""The cells of NAS-Bench-201."""

from spaces.nas_bench_201.space import NASBench201Space

__all__ = ["NASBench201Space"]
