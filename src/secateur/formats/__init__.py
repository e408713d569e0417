"""Files: saved results, weights, ONNX."""
