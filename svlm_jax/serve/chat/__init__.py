"""/v1/chat/completions and /v1/models: requests that share the device with the live streams."""
