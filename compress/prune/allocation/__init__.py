"""Which widths and blocks to keep for a time: a measured loss and a measured time of each, and the best of all sums."""
