"""Sentences kept, corrected or deleted: by a language model, or by rules."""
