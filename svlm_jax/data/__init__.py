"""Training samples in: annotation, windows, records, batches. Host side: numpy, never jax."""
