"""Widths and depths of a given model as decisions."""

from spaces.channels.space import ChannelsConfig, ChannelSpace

__all__ = ["ChannelSpace", "ChannelsConfig"]
