"""Flags of `svlm serve` for those who operate it: how it stops, its name among replicas, and where its events are sent.

Owns their names and defaults. Units: seconds.
"""

import argparse
import os
import re
from typing import Any

from svlm_jax.cli.flags import number
from svlm_jax.errors import InputError

MAX_REPLICA_CHARS = 40
REPLICA = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


def operation_flags(group: Any) -> None:
    drain = "seconds that streams may go on after SIGTERM, while no new ones start (default 0)"
    group.add_argument("--drain-seconds", type=number(0), default=0.0, metavar="S", help=drain)
    replica = "name of this server among others behind a proxy, before the names of its streams (or $SVLM_REPLICA)"
    group.add_argument("--replica", default=os.environ.get("SVLM_REPLICA", ""), metavar="NAME", help=replica)
    webhook = "address that gets each caption, alert and change of a source as a POST of JSON; repeatable"
    group.add_argument("--webhook", action="append", default=[], metavar="URL", help=webhook)
    kinds = "events that webhooks get, by type (default: all)"
    group.add_argument("--webhook-events", nargs="+", default=[], metavar="TYPE", help=kinds)
    secret = "with which webhooks are signed, 16 bytes or more (or $SVLM_WEBHOOK_SECRET)"
    group.add_argument("--webhook-secret", default=os.environ.get("SVLM_WEBHOOK_SECRET", ""), metavar="SECRET", help=secret)


def start_webhooks(args: argparse.Namespace, hub: Any) -> list[Any]:
    """The webhooks that the flags name, which send the events of a hub."""
    from svlm_jax.serve.notifications.webhooks import Webhook

    options = {"secret": args.webhook_secret, "kinds": args.webhook_events}
    webhooks = [Webhook(url, hub.log, hub.metrics, **options) for url in args.webhook]
    for webhook in webhooks:
        webhook.start()
    return webhooks


def check_operation(args: argparse.Namespace) -> None:
    """Refuse what cannot be, before a model is loaded.

    Raises:
        InputError: one line that has no secret.
    """
    from svlm_jax.serve.notifications.notifier import KINDS
    from svlm_jax.serve.notifications.webhooks import check_secret, check_url

    if args.replica and (not REPLICA.fullmatch(args.replica) or len(args.replica) > MAX_REPLICA_CHARS):
        expected = f"small letters, digits and hyphens, at most {MAX_REPLICA_CHARS}"
        raise InputError("--replica", args.replica, expected, "use the name of the pod")
    for url in args.webhook:
        check_url(url)
    check_secret(args.webhook_secret)
    for kind in args.webhook_events:
        if kind not in KINDS:
            raise InputError("--webhook-events", kind, f"some of {', '.join(KINDS)}", "choose some of them")
