"""Recordings of the original code, replayed through the real engine."""
