"""Streams that several people watch, with one model behind them. `svlm serve` is the command.

sources/ (pictures in) -> engine/ (a thread that runs the streams) -> hub (streams, who watches them, what was said) ->
realtime/, rest/, chat/ (the APIs) behind http/ (who may ask) -> page/ in a browser. notifications/: webhooks and the log of
events. `site` puts the routes together, `server` runs them.
"""
