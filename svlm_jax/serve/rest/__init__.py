"""/v1/streaming/sessions and /v1/events: streams over plain HTTP."""
