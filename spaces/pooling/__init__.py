"""Where a backbone halves its resolution: Javan, Toews and Pedersoli, "Balanced Mixture of SuperNets"."""

from spaces.pooling.space import PoolingConfig, PoolingSpace

__all__ = ["PoolingConfig", "PoolingSpace"]
