"""Pruning: which weights and units go, and how they are taken out of a model."""
