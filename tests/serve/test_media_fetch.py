"""Claims about svlm_jax.serve.chat.fetch: a URL in a request reads nothing that only the server can reach."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from svlm_jax.errors import InputError
from svlm_jax.serve.chat.fetch import MediaFetcher, is_public
from tests.support import HANG


class Handler(BaseHTTPRequestHandler):
    """paths: what is answered there: bytes, or where a redirect goes. hosts: the Host fields that came. is_over: set at the
    end."""

    paths: dict
    hosts: list
    is_over: threading.Event

    def do_GET(self):
        self.hosts.append(self.headers["Host"])
        answer = self.paths.get(self.path)
        if self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            while not self.is_over.wait(0.02):  # a byte now and then: no read ever times out
                try:
                    self.wfile.write(b"x")
                except OSError:
                    return
            return
        self.send_response(404 if answer is None else 302 if isinstance(answer, str) else 200)
        if isinstance(answer, str):
            self.send_header("Location", answer)
        elif answer is not None and self.path != "/unknown-length":
            self.send_header("Content-Length", str(len(answer) + (self.path == "/cut")))
        self.end_headers()
        self.wfile.write(answer if isinstance(answer, bytes) else b"")

    def log_message(self, *_):
        pass


@contextmanager
def web(**paths):
    answers = {f"/{name.replace('_', '-')}": value for name, value in paths.items()}
    handler = type("Paths", (Handler,), {"paths": answers, "hosts": [], "is_over": threading.Event()})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://media.example:{server.server_port}", handler.hosts
        finally:
            handler.is_over.set()
            server.shutdown()
            thread.join()


def fetcher(addresses=None, **options):
    """Named by the operator: media.example, which is this machine."""
    addresses = {"media.example": ["127.0.0.1"], **(addresses or {})}
    options = {"max_bytes": 1000, "timeout": HANG, "hosts": ("media.example",), **options}
    return MediaFetcher(resolve=lambda host, port: addresses.get(host, [host]), **options)


def refusal(fetch, url):
    with pytest.raises(InputError) as error:
        fetch.fetch(url, "url")
    assert len(str(error.value)) < 300
    return str(error.value)


PRIVATE = (
    "127.0.0.1 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 255.255.255.255 240.0.0.1 ::1 :: "
    "fe80::1%eth0 fc00::1 ff02::1 ::ffff:127.0.0.1 ::127.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: localhost"
)


@pytest.mark.parametrize("address", PRIVATE.split())
def test_no_address_of_this_machine_or_its_networks_is_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_public(address):
    assert is_public(address)


def test_a_file_of_a_host_that_the_operator_named_is_fetched():
    with web(a=b"content", unknown_length=b"more") as (url, hosts):
        assert fetcher().fetch(f"{url}/a", "url") == b"content" and hosts == [url.removeprefix("http://")]
        assert fetcher().fetch(f"{url}/unknown-length", "url") == b"more"


def test_the_address_that_was_checked_is_the_one_that_is_connected_to():
    """Else a name that changes its address between the two (DNS rebinding) leads to the server's network."""
    answers = iter([["127.0.0.1"]])
    with web(a=b"content") as (url, _):
        fetch = MediaFetcher(max_bytes=1000, timeout=HANG, hosts=("media.example",), resolve=lambda host, port: next(answers))
        assert fetch.fetch(f"{url}/a", "url") == b"content"  # a second question would have no answer


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], []], ids=["private", "one of two", "unknown"])
def test_a_host_with_a_private_address_is_refused_as_one_that_does_not_exist(addresses):
    """Else the answers tell what the server's network looks like."""
    line = refusal(fetcher({"evil.example": addresses}), "http://evil.example/a")
    assert line.startswith("url: got evil.example, no public host, expected an http or https URL of a public host")


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example", "2130706433", "0x7f.1", "localhost.", "[::ffff:7f00:1]"])
def test_other_spellings_of_this_machine_and_names_that_cannot_be_are_no_public_hosts(host):
    url = f"http://{host}/"
    assert "no public host" in refusal(MediaFetcher(max_bytes=1000, timeout=30.0), url)


def test_redirects_are_checked_and_counted():
    with web(first="/second", second=b"content", inside="http://10.0.0.1/a", loop="/loop", file="file:///etc/passwd") as (
        url,
        _,
    ):
        assert fetcher().fetch(f"{url}/first", "url") == b"content"
        assert "10.0.0.1, no public host" in refusal(fetcher(), f"{url}/inside")
        assert "more than 3 redirects" in refusal(fetcher(), f"{url}/loop")
        assert "got file:///etc/passwd" in refusal(fetcher(), f"{url}/file")


def test_too_much_too_slow_cut_or_missing_is_one_line():
    with web(a=b"x" * 1001, unknown_length=b"x" * 1001, cut=b"half") as (url, _):
        for path in ("a", "unknown-length"):
            assert "more than 1000 bytes" in refusal(fetcher(), f"{url}/{path}")
        assert "no answer (IncompleteRead)" in refusal(fetcher(), f"{url}/cut")
        assert "status 404" in refusal(fetcher(), f"{url}/none")
        assert "no answer within 0.2 s" in refusal(fetcher(timeout=0.2, max_bytes=10**9), f"{url}/slow")


@pytest.mark.parametrize(
    "url",
    ["ftp://media.example/", "file:///etc/passwd", "http:///a", "http://user:secret@media.example/", "http://media.example:x/",
     "http://media.example/ a", "http://media.example/\n", "gopher://media.example/", "http://" + "a" * 3000],
)  # fmt: skip
def test_what_is_no_plain_address_is_refused_without_its_password(url):
    assert "secret" not in refusal(fetcher(), url)
