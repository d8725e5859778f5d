"""The thread that drives the streams of one model, and what it publishes about them."""
