"""Webhooks: events arrive in order and can be checked, a receiver that fails gets them later, and nobody waits for it."""

import base64
import contextlib
import hashlib
import hmac
import json
import socket
import threading
from contextlib import contextmanager

import pytest

from svlm_jax.errors import InputError
from svlm_jax.serve.metrics import Metrics
from svlm_jax.serve.notifications.event_log import EventLog
from svlm_jax.serve.notifications.webhooks import COUNTER, Webhook, WebhookPolicy, check_secret, check_url
from tests.support import HANG, wait_until
from tests.support.webhook_receiver import HUNG_UP, Receiver, receiving

FAST = WebhookPolicy(first_delay=0.001, max_delay=0.004, timeout=HANG, last_seconds=HANG)


@contextmanager
def sending(receiver: Receiver, **options):
    log, metrics = EventLog(64), Metrics()
    webhook = Webhook(receiver.url, log, metrics, **{"policy": FAST, **options})
    webhook.start()
    try:
        yield log, metrics, webhook
    finally:
        log.close()
        webhook.stop()
        assert not webhook.thread.is_alive()


def add(log: EventLog, *numbers: int, kind: str = "caption") -> None:
    for number in numbers:
        log.add(kind, "abcdefgh", json.dumps({"type": kind, "number": number}))


def numbers(receiver: Receiver) -> list[int]:
    return [event["number"] for event in receiver.accepted]


def test_events_arrive_in_order_over_one_connection_and_can_be_checked():
    """The signature is that of standardwebhooks.com: else every receiver needs code of its own."""
    secret = "whsec_" + base64.b64encode(b"k" * 24).decode()
    with receiving() as receiver, sending(receiver, secret=secret) as (log, metrics, _):
        add(log, *range(5))
        receiver.wait(lambda: len(receiver.accepted) == 5)
        assert numbers(receiver) == [0, 1, 2, 3, 4] and len({request.connection for request in receiver.received}) == 1
        first, second = receiver.received[:2]
        signed = f"{first.headers['webhook-id']}.{first.headers['webhook-timestamp']}.".encode() + first.body
        digest = base64.b64encode(hmac.new(b"k" * 24, signed, hashlib.sha256).digest()).decode()
        assert first.headers["webhook-signature"] == f"v1,{digest}" and first.headers["content-type"] == "application/json"
        assert first.headers["webhook-id"] != second.headers["webhook-id"]
        assert first.path == "/services/T0/secret-path?key=secret-key"
    assert metrics.value(COUNTER, "delivered") == 5


def test_a_receiver_that_fails_gets_every_event_later_and_its_address_is_not_written(capfd):
    """Lost alerts are found out too late; an address on stderr is a key in everybody's logs."""
    answers = iter([500, HUNG_UP, 429, 503, 204, HUNG_UP, 204])
    with receiving(lambda number: next(answers, 204)) as receiver, sending(receiver) as (log, metrics, _):
        add(log, *range(4))
        receiver.wait(lambda: len(receiver.accepted) == 4)
        assert numbers(receiver) == [0, 1, 2, 3] and metrics.value(COUNTER, "retried") == 3
        assert len({request.headers["webhook-id"] for request in receiver.received}) == 4  # a receiver can tell a repetition
    err = capfd.readouterr().err
    assert "webhook 127.0.0.1: answered 500; trying again" in err and "secret" not in err


def test_what_a_receiver_refuses_is_not_sent_again():
    with receiving(lambda number: 400 if number == 0 else 204) as receiver, sending(receiver) as (log, metrics, _):
        add(log, 0, 1)
        receiver.wait(lambda: bool(receiver.accepted))
    assert numbers(receiver) == [1] and metrics.value(COUNTER, "refused") == 1


def test_a_receiver_that_hangs_holds_nobody_up_and_is_told_what_it_missed():
    """Else memory grows with every hour that it is away."""
    released = threading.Event()
    policy = WebhookPolicy(first_delay=0.001, max_delay=0.004, timeout=HANG, max_waiting=5)

    def respond(number: int) -> int:
        released.wait(HANG)
        return 503 if number == 0 else 204

    with receiving(respond) as receiver, sending(receiver, policy=policy) as (log, metrics, _):
        add(log, 0)
        receiver.wait(lambda: bool(receiver.received))
        add(log, *range(1, 500))  # returns, though nothing is sent
        assert len(log.ring) == 64 and len(receiver.received) == 1
        released.set()
        receiver.wait(lambda: len(receiver.accepted) == 6)
        assert receiver.accepted[0] == {"type": "missed", "count": 495}
        assert [event["number"] for event in receiver.accepted[1:]] == [495, 496, 497, 498, 499]
        assert metrics.value(COUNTER, "dropped") == 495


@pytest.mark.parametrize(("start", "outcome"), [(b"HTTP/1.0 200 ", "retried"), (b"HTTP/1.0 200 OK\r\n\r\n", "delivered")])
def test_a_receiver_that_answers_a_byte_at_a_time_is_not_waited_for(start, outcome):
    """Else its thread waits for ever, and events are lost without a word."""
    bound, released = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def trickle() -> None:
        connection, _ = bound.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(start)
            while not released.wait(0.01):
                connection.sendall(b"x")

    threading.Thread(target=trickle).start()
    log, metrics = EventLog(), Metrics()
    policy = WebhookPolicy(first_delay=0.001, max_delay=0.004, timeout=0.2, last_seconds=0.2)
    webhook = Webhook(f"http://127.0.0.1:{bound.getsockname()[1]}/", log, metrics, policy=policy)
    webhook.start()
    add(log, 0)
    wait_until(lambda: metrics.value(COUNTER, outcome))
    log.close()
    webhook.stop()
    released.set()
    bound.close()


def test_a_receiver_that_asks_for_a_pause_in_other_digits_is_asked_again():
    """Else a header field ends the thread, and no event is sent any more."""
    with (
        receiving(lambda number: 503 if number == 0 else 204, retry_after="\u00b2") as receiver,
        sending(receiver) as (log, *_),
    ):
        add(log, 0)
        receiver.wait(lambda: bool(receiver.accepted))


def test_only_events_of_the_named_kinds_are_sent():
    with receiving() as receiver, sending(receiver, kinds=("alert",)) as (log, _, _webhook):
        add(log, 0)
        add(log, 1, kind="alert")
        add(log, 2)
        add(log, 3, kind="alert")
        receiver.wait(lambda: len(receiver.accepted) == 2)
        assert numbers(receiver) == [1, 3]


def test_what_waits_when_the_server_stops_is_sent_or_told(capfd):
    with receiving(lambda number: 503 if number < 3 else 204) as receiver:
        with sending(receiver) as (log, _, _webhook):
            add(log, *range(3))
        assert numbers(receiver) == [0, 1, 2]
    bound = socket.create_server(("127.0.0.1", 0))  # takes connections and answers nothing
    log, metrics = EventLog(), Metrics()
    policy = WebhookPolicy(first_delay=0.001, max_delay=0.004, timeout=0.05, last_seconds=0.2)
    webhook = Webhook(f"http://127.0.0.1:{bound.getsockname()[1]}/", log, metrics, policy=policy)
    webhook.start()
    add(log, *range(3))
    log.close()
    webhook.stop()
    bound.close()
    assert metrics.value(COUNTER, "dropped") == 3 and "3 events dropped: the server is stopping" in capfd.readouterr().err


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://host/secret",
        "http:///secret",
        "http://[secret",
        "http://host:secret/",
        "http://host/sec ret",
        "host/secret",
        "http://a..b/secret",
        "http://" + "a" * 70 + "/secret",
    ],
)
def test_an_address_that_is_none_is_one_line_without_it(url):
    with pytest.raises(InputError, match=r"^--webhook: got ") as error:
        check_url(url)
    assert "secret" not in str(error.value) or url == "host/secret"


@pytest.mark.parametrize("secret", ["short-secret", "whsec_!!secret!!", "whsec_c2VjcmV0"])
def test_a_secret_that_is_none_is_one_line_without_it(secret):
    with pytest.raises(InputError, match=r"^--webhook-secret: got ") as error:
        check_secret(secret)
    assert secret not in str(error.value)
    assert check_secret("") == b"" and check_secret("a secret of enough characters")
