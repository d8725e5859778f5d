"""Tests are claims about the library; the tree mirrors the source."""
