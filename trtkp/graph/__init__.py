"""ONNX graphs: the operators of domain ``trtkp``, the layer table, and the passes that rewrite a model."""
