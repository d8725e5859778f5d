"""Overlapped-chunk SFT: what a sample costs (loss) and how a recorded one is replayed (trace)."""
