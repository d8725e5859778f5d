"""The sources that clients may start: a generated game, the operator's list, their own camera, and addresses if allowed.

Owns who may open what, and what clients read when it does not open. Opening takes as long as the source takes to answer: call
it in a thread.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from svlm_jax.errors import InputError
from svlm_jax.media.reconnect import Reconnect
from svlm_jax.media.sources import SCHEMES, Opener
from svlm_jax.serve.sources.feed import Feed, FeedConfig, FrameSink, OpenedFeed, mask_address

MAX_SEED = 9_999_999
MAX_SOURCE_INDEX = 9_999
SOURCES = ("match", "listed", "push", "address")


class StreamSource(NamedTuple):
    """What a client wants to watch.

    kind: one of SOURCES; "push": images that it sends itself. seed: of a match; None: any. index: of a listed source.
    is_always_on: a camera is waited for, and never given up.
    """

    kind: str = "match"
    seed: int | None = None
    index: int = 0
    address: str = ""
    is_always_on: bool = False


class SourceCatalog:
    """Sources of one server."""

    def __init__(
        self,
        listed: Sequence[tuple[str, str]] = (),
        *,
        allow_addresses: bool = False,
        schemes: Mapping[str, Opener] = SCHEMES,
        new_match: Callable[[int], str] | None = None,
        reconnect: Reconnect = Reconnect(),  # noqa: B008 (immutable)
    ) -> None:
        """Args:
        listed: (title, name for `open_source`) of the operator's sources, which clients choose by index.
        allow_addresses: let clients name any file or URL of this machine.
        schemes: how each kind of source is opened, see `open_source`.
        new_match: returns the name of a generated game whose seed is at most the argument; None: the server has no games.
        reconnect: when a camera that is lost is opened again, and when it is given up.
        """
        self.listed, self.allow_addresses = list(listed), allow_addresses
        self.schemes, self.new_match, self.reconnect = schemes, new_match, reconnect

    def open(self, source: StreamSource, config: FeedConfig, sink: FrameSink) -> Feed:
        """The feed of a source that the server opens.

        Raises:
            InputError: the server does not offer it, or it does not open.
        """
        if source.kind == "match":
            return self._open_match(source, config, sink)
        if source.kind == "listed":
            return self._open_listed(source, config, sink)
        if not self.allow_addresses:
            raise InputError("source", "an address", "one of the list", "the server was started without --allow-addresses")
        address = source.address
        try:  # the error may quote the URL with its user and password
            return self._open(address, config, sink, title="address", is_private=False)
        except InputError as error:
            error.args = (mask_address(str(error), address, "address"),)
            raise

    def _open(
        self, address: str, config: FeedConfig, sink: FrameSink, *, title: str, is_private: bool, is_always_on: bool = False
    ) -> OpenedFeed:
        reconnect = self.reconnect._replace(must_open=False, seconds=math.inf) if is_always_on else self.reconnect
        options = {"schemes": self.schemes, "reconnect": reconnect}
        return OpenedFeed(config, sink, address, title=title, is_private=is_private, **options)

    def _open_match(self, source: StreamSource, config: FeedConfig, sink: FrameSink) -> Feed:
        if self.new_match is None:
            raise InputError("source", "match", "another source", "this server has no generated games")
        name = f"match:{source.seed}" if source.seed is not None else self.new_match(MAX_SEED)
        title = name.replace(":", " ")
        feed = self._open(name, config, sink, title=title, is_private=False)
        feed.metrics_label = "match"
        return feed

    def _open_listed(self, source: StreamSource, config: FeedConfig, sink: FrameSink) -> Feed:
        index = source.index
        if index >= len(self.listed):
            raise InputError("index", index, f"less than {len(self.listed)}", "choose one of the list")
        title, address = self.listed[index]
        try:
            feed = self._open(address, config, sink, title=title, is_private=True, is_always_on=source.is_always_on)
            feed.metrics_label = title
            return feed
        except InputError as error:  # names the operator's files: for stderr, not for clients
            print(f"{title}: {mask_address(str(error), address, title)}", file=sys.stderr, flush=True)
            raise InputError("source", "one that does not open", "one that does", "ask whoever runs the server") from None
