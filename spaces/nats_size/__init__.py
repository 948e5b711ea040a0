"""The size space of NATS-Bench."""

from spaces.nats_size.space import NATSSizeSpace

__all__ = ["NATSSizeSpace"]
