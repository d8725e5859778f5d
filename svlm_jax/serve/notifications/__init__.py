"""What happens in streams, told to those outside: the log of events, and webhooks that post it."""
