"""The model as NNX modules: layers and cache, vision tower, text decoder, and the two joined."""
