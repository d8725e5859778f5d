"""Below all routes: who may use one, deadlines and counts of connections, hooks into uvicorn."""
