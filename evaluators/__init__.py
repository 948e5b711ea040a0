"""Measurements of a model: data sets, accuracy, cost, latency."""
