"""Webhooks: each event of the log as one POST of JSON to an address that the operator names.

Owns the threads that send, one an address, and when they try again. An address that does not answer costs a position in the
log: the engine never waits, memory stays as it is, and of what waits the oldest is dropped, told and counted. Requests are
signed as standardwebhooks.com says, so that its libraries can check them. Of an address only the host is ever written: its path
and query are secrets with many services. Units: seconds.
"""

import base64
import binascii
import contextlib
import hashlib
import hmac
import http.client
import json
import random
import re
import socket
import sys
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from svlm_jax.errors import InputError
from svlm_jax.serve.metrics import Metrics
from svlm_jax.serve.notifications.event_log import EventLog, LoggedEvent
from svlm_jax.serve.rate_limit import RateLimit

COUNTER = "svlm_webhook_events_total"  # label: delivered, refused, dropped, retried
SECRET_PREFIX = "whsec_"  # before a secret in base64
MIN_SECRET_BYTES = 16
RETRIED = (408, 425, 429)  # as 5xx and answers that do not come; other answers will not change
USER_AGENT = "svlm-webhook"


@dataclass(frozen=True)
class WebhookPolicy:
    """Attributes:
    first_delay, max_delay: before an event is sent again: doubled each time, with up to as much again at random.
    timeout: for an attempt, from the connection to the end of the answer.
    max_waiting: events that wait for an address; of more the oldest are dropped.
    last_seconds: for what still waits when the server stops.
    """

    first_delay: float = 0.5
    max_delay: float = 60.0
    timeout: float = 10.0
    max_waiting: int = 1000
    last_seconds: float = 3.0


def check_url(url: str) -> SplitResult:
    """The parts of an address.

    Raises:
        InputError: it is no http or https address. The error has at most its host.
    """
    remedy = "write https://HOST/PATH"
    try:
        parts = urlsplit(url)
        _ = parts.port  # a port that is no number
        (parts.hostname or "").encode("idna")  # a name that cannot be looked up, such as "a..b"
    except ValueError:
        raise InputError("--webhook", "no address", "an http or https address", remedy) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isascii() or not url.isprintable() or " " in url:
        raise InputError("--webhook", parts.hostname or "no host", "an http or https address", remedy)
    return parts


def check_secret(secret: str) -> bytes:
    """The key of a secret: base64 after "whsec_", or its characters.

    Raises:
        InputError: it is too short, or no base64 where it says so. The error does not have it.
    """
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True) if secret.startswith(SECRET_PREFIX) else None
    except binascii.Error:
        raise InputError("--webhook-secret", "no base64 after whsec_", "base64", "leave whsec_ out, or encode it") from None
    key = secret.encode() if key is None else key
    if key and len(key) < MIN_SECRET_BYTES:
        remedy = "generate one: openssl rand -base64 24"
        raise InputError("--webhook-secret", f"{len(key)} bytes", f"{MIN_SECRET_BYTES} or more", remedy)
    return key


def signature(key: bytes, event_id: str, timestamp: int, body: bytes) -> str:
    """Header `webhook-signature`: HMAC-SHA256 of "ID.TIMESTAMP.BODY"."""
    digest = hmac.new(key, f"{event_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


class Webhook:
    """One address. `start` it once; `stop` waits a little for what still waits to be sent."""

    def __init__(
        self,
        url: str,
        log: EventLog,
        metrics: Metrics,
        *,
        secret: str = "",
        kinds: Collection[str] = (),
        policy: WebhookPolicy = WebhookPolicy(),
    ) -> None:
        """Args:
        kinds: of the events that it gets; none named: all.

        Raises:
            InputError: of `check_url`, `check_secret`.
        """
        self.parts, self.key = check_url(url), check_secret(secret)
        self.log, self.metrics, self.kinds, self.policy = log, metrics, frozenset(kinds), policy
        self.position = log.next_number
        self.connection: http.client.HTTPConnection | None = None
        self.is_new = True  # the connection, at the last request
        self.raw: socket.socket | None = None
        self.is_late = False  # whether the time for the last request is over
        self.stopping = threading.Event()
        self.stop_time = float("inf")  # of `time.monotonic`
        self.line_limit = RateLimit(1 / 60, 3)  # lines on stderr
        self.thread = threading.Thread(target=self._run, name=f"webhook {self.parts.hostname}", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """Send what waits, as long as the policy allows, and end the thread. The log must be closed before."""
        self.stop_time = time.monotonic() + self.policy.last_seconds
        self.stopping.set()
        self.thread.join(self.policy.last_seconds + self.policy.timeout + 1)
        if waiting := self.log.next_number - self.position:
            self.metrics.count(COUNTER, waiting, "dropped")
            self._tell(f"{waiting} events dropped: the server is stopping", is_last=True)

    def _run(self) -> None:
        while time.monotonic() < self.stop_time:
            if not self.log.wait(self.position):
                break  # closed, and all is sent
            self._skip_oldest()
            events, _ = self.log.read(self.position)
            for event in events:
                if self.position != event.number:
                    break  # some were dropped meanwhile
                if self.kinds and event.kind not in self.kinds:
                    self.position += 1
                elif not self._deliver(event):
                    break
        self._disconnect()

    def _skip_oldest(self) -> None:
        """Drop what is too much to wait."""
        excess = self.log.next_number - self.position - min(self.policy.max_waiting, len(self.log.ring))
        if excess > 0:
            self.position += excess
            self.metrics.count(COUNTER, excess, "dropped")
            self._tell(f"{excess} events dropped: more than {self.policy.max_waiting} waited")
            body = json.dumps({"type": "missed", "count": excess}).encode()
            self._post(body, f"{self.log.event_id(self.position)}-missed")  # tried once: the next drop tells again

    def _deliver(self, event: LoggedEvent) -> bool:
        """Send an event until it is accepted, or refused for good. False: it is not the next one any more, or time is over."""
        delay, event_id = self.policy.first_delay, self.log.event_id(event.number)
        while True:
            wait = self._post(event.data.encode(), event_id)
            if wait is None:
                self.position += 1
                return True
            self.metrics.count(COUNTER, label="retried")
            pause = min(max(wait, delay * (1 + random.random())), self.policy.max_delay)
            if not self._pause(pause):
                return False
            delay = min(2 * delay, self.policy.max_delay)
            self._skip_oldest()
            if self.position != event.number:
                return False

    def _pause(self, seconds: float) -> bool:
        """Wait before an event is sent again, less long if the server stops meanwhile. False: no time is left for that."""
        if not self.stopping.is_set():
            self.stopping.wait(seconds)
            return True
        left = self.stop_time - time.monotonic()
        time.sleep(max(0.0, min(seconds, left)))
        return seconds < left

    def _post(self, body: bytes, event_id: str) -> float | None:
        """One attempt. None: the event is done with, accepted or refused; otherwise the least seconds to wait."""
        self.is_late, alarm = False, threading.Timer(self.policy.timeout, self._abort)
        alarm.daemon = True
        alarm.start()
        try:
            status, retry_after = self._request(body, self._headers(body, event_id))
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._disconnect()
            self._tell(f"no answer ({type(error).__name__}); trying again")
            return 0.0
        finally:
            alarm.cancel()
        if 200 <= status < 300:
            self.metrics.count(COUNTER, label="delivered")
            return None
        if status in RETRIED or status >= 500:
            self._tell(f"answered {status}; trying again")
            return retry_after
        self.metrics.count(COUNTER, label="refused")
        self._tell(f"answered {status}: the event is not sent again")
        return None

    def _headers(self, body: bytes, event_id: str) -> Mapping[str, str]:
        timestamp = int(time.time())  # of this attempt, as the standard says: receivers refuse old ones
        headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT}
        headers |= {"webhook-id": event_id, "webhook-timestamp": str(timestamp)}
        if self.key:
            headers["webhook-signature"] = signature(self.key, event_id, timestamp, body)
        if self.parts.username is not None:
            user = f"{unquote(self.parts.username)}:{unquote(self.parts.password or '')}"
            headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
        return headers

    def _request(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, float]:
        """Status of an answer, and its Retry-After in seconds. The connection stays open for the next event."""
        parts = self.parts
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            response = self._exchange(target, body, headers)
        except (http.client.RemoteDisconnected, ConnectionError):
            if self.is_new:
                raise
            self._disconnect()  # a connection that the server closed while nothing was sent is no failure
            response = self._exchange(target, body, headers)
        response.read(65536)  # all of a usual answer, so that the connection can be used again
        if not response.isclosed():
            self._disconnect()
        after = response.headers.get("Retry-After", "")
        return response.status, float(after) if re.fullmatch("[0-9]{1,5}", after) else 0.0

    def _exchange(self, target: str, body: bytes, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        parts, self.is_new = self.parts, self.connection is None
        if self.connection is None:
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            self.connection = kind(parts.hostname or "", parts.port, timeout=self.policy.timeout)
            self.connection.connect()
            self.raw = self.connection.sock  # a connection gives it away once its last answer has begun
        self.connection.request("POST", target, body, dict(headers))
        response = self.connection.getresponse()
        if self.is_late:  # what was cut off may look like an answer
            raise TimeoutError
        return response

    def _abort(self) -> None:
        """End a request that another thread waits for: a receiver that sends a byte now and then meets every other timeout."""
        self.is_late = True
        if self.raw is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.raw, socket.SHUT_RDWR)

    def _disconnect(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def _tell(self, text: str, *, is_last: bool = False) -> None:
        if is_last or self.line_limit.allow():
            print(f"webhook {self.parts.hostname}: {text}", file=sys.stderr, flush=True)
