"""Strategies, supernets and executors that find an architecture."""
