"""Writing ONNX files and comparing them with the module they were made from."""
