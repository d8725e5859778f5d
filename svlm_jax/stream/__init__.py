"""One second of video at a time: what survives, what is sampled, and the state carried on."""
