"""Clips of live commentary alone, for the last part of training."""
