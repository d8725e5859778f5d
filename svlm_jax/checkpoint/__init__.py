"""Weights in and out of Hugging Face files, and the checkpoints of a training run."""
