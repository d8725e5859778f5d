"""Streams that several people watch in a browser: one model, one page, sockets. `svlm serve` is the command.

engine (a thread around `Session`) -> hub (who watches what; captions so far) -> web (routes, sockets, who may) -> page/.
"""
