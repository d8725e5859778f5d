"""A small world to learn in: an endless ball game with pictures, commentary and the truth about both, from a seed."""
