"""Transcripts mended: times, words, what nobody said."""
