"""ONNX files of fewer bits: written by ONNX Runtime's quantiser, chosen by measured time and accuracy."""
