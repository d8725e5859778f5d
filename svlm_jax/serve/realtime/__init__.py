"""/v1/realtime: the events of both sides, and one client's socket and session."""
