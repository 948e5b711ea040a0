"""Sorted training: nested sub-networks of a given network, all of one set of weights and of one training."""
