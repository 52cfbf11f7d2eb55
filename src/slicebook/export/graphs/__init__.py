"""Graphs of ONNX: how they are traced, those of a generator, and the program that samples with them."""
