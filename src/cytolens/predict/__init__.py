"""Prediction: images in, `Cells` out, on ONNX Runtime; no torch needed."""
