"""The live page: streams that several people watch in a browser, with one model behind them. `svlm serve` is the command.

engine (a thread that runs the streams) -> hub (streams, viewers, captions so far) -> web (routes, sockets, access) -> page/.
"""
