"""The model against the PyTorch reference, layer by layer, so that the first failure names the layer."""
