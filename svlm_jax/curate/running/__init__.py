"""A step over all videos of its input: resumed, sharded, merged."""
