"""Latency of ONNX files on a target, and tables of it."""
