"""Passes that rewrite an ONNX graph, one file each. A pass states its rule, changes the model, returns what it did."""
