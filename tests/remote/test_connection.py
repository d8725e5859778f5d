"""What is told of a server behind HTTP: nothing that would let others in."""

import pytest

from svlm_jax.remote.connection import Connection

pytest.importorskip("openai")


def test_what_a_server_says_of_its_address_is_told_without_secrets(monkeypatch):
    """Servers and proxies quote the address that was asked; errors of an evaluation go into its files."""
    monkeypatch.setenv("OPENAI_API_KEY", "k3y-of-mine")
    url = "http://viewer:s3cret@127.0.0.1:9/v1"
    connection = Connection(url, "m", key_env="OPENAI_API_KEY", timeout=1.0, retries=0, flag="--judge")
    try:
        told = connection.hide(f"404: nothing at {url}/chat?key=s3cret\nfor the key k3y-of-mine")
    finally:
        connection.close()
    assert told == "404: nothing at http://***@127.0.0.1:9/v1/chat?key=*** for the key ***"
