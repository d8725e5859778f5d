"""The sources that clients may start: a generated game, the operator's list, their own camera, and addresses if allowed.

Owns who may open what, and what clients read when it does not open. Opening takes as long as the source takes to answer: call
it in a thread.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from svlm_jax.errors import InputError
from svlm_jax.media.sources import SCHEMES, Opener
from svlm_jax.serve.feed import CameraFeed, Feed, FeedConfig, FrameSink, OpenedFeed, mask_address
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.messages import MAX_SEED


class SourceCatalog:
    """Sources of one server."""

    def __init__(
        self,
        listed: Sequence[tuple[str, str]] = (),
        *,
        allow_addresses: bool = False,
        schemes: Mapping[str, Opener] = SCHEMES,
        new_match: Callable[[int], str] | None = None,
    ) -> None:
        """Args:
        listed: (title, name for `open_source`) of the operator's sources, which clients choose by index.
        allow_addresses: let clients name any file or URL of this machine.
        schemes: how each kind of source is opened, see `open_source`.
        new_match: returns the name of a generated game whose seed is at most the argument; None: the server has no games.
        """
        self.listed, self.allow_addresses = list(listed), allow_addresses
        self.schemes, self.new_match = schemes, new_match

    def open(self, message: dict[str, Any], config: FeedConfig, sink: FrameSink, limits: Limits) -> Feed:
        """The feed that a `start` message asks for.

        Raises:
            InputError: the server does not offer it, or it does not open.
        """
        source = message.get("source", "match")
        if source == "match":
            return self._open_match(message, config, sink)
        if source == "camera":
            return CameraFeed(config, sink, limits)
        if source == "listed":
            return self._open_listed(message.get("index", 0), config, sink)
        if not self.allow_addresses:
            raise InputError("source", "an address", "one of the list", "the server was started without --allow-addresses")
        address = message.get("address", "")
        try:  # the error may quote the URL with its user and password
            return OpenedFeed(config, sink, address, title="address", is_private=False, schemes=self.schemes)
        except InputError as error:
            error.args = (mask_address(str(error), address, "address"),)
            raise

    def _open_match(self, message: dict[str, Any], config: FeedConfig, sink: FrameSink) -> Feed:
        if self.new_match is None:
            raise InputError("source", "match", "another source", "this server has no generated games")
        name = f"match:{message['seed']}" if "seed" in message else self.new_match(MAX_SEED)
        title = name.replace(":", " ")
        return OpenedFeed(config, sink, name, title=title, is_private=False, schemes=self.schemes)

    def _open_listed(self, index: int, config: FeedConfig, sink: FrameSink) -> Feed:
        if index >= len(self.listed):
            raise InputError("index", index, f"less than {len(self.listed)}", "choose one of the list")
        title, address = self.listed[index]
        try:
            return OpenedFeed(config, sink, address, title=title, is_private=True, schemes=self.schemes)
        except InputError as error:  # names the operator's files: for stderr, not for clients
            print(f"{title}: {mask_address(str(error), address, title)}", file=sys.stderr, flush=True)
            raise InputError("source", "one that does not open", "one that does", "ask whoever runs the server") from None
