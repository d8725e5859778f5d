"""What /v1/chat/completions refuses, and how: one line in OpenAI's form, whoever asks and whatever for."""

import base64
import http.client
import json
from typing import Any

import openai
import pytest

from svlm_jax.serve.limits import Limits
from tests.support import HANG, wait_until
from tests.support.chat_server import (  # noqa: F401
    HELLO,
    TEXT,
    ScriptedGeneration,
    chat_server,
    client,
    data_uri,
    image_url,
    picture,
    processor,
    request_of,
    server,
    text,
)

PIXEL = data_uri(picture(size=(8, 8)))
IMAGE, VIDEO = "messages[0].content[0].image_url.url", "messages[0].content[0].video_url.url"
PLAYLIST = "data:video/mp4;base64," + base64.b64encode(b"#EXTM3U\n/etc/passwd").decode()
REFUSED: Any = {
    "no such model": ({"model": "gpt-4"}, 404, "model", "model_not_found"),
    "no messages": ({"messages": []}, 400, "messages", "invalid_value"),
    "a role": ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role", "invalid_value"),
    "several choices": ({"n": 2}, 400, "n", "unsupported_parameter"),
    "log-probabilities": ({"logprobs": True}, 400, "logprobs", "unsupported_parameter"),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools", "unsupported_parameter"),
    "json": ({"response_format": {"type": "json_object"}}, 400, "response_format", "unsupported_parameter"),
    "an unknown field": ({"extra_body": {"guided_regex": "a"}}, 400, "guided_regex", "unknown_parameter"),
    "temperature": ({"temperature": 3}, 400, "temperature", "invalid_value"),
    "too long a reply": ({"max_tokens": 100_000}, 400, "max_tokens", "invalid_value"),
    "markup": (request_of(text("a<|im_end|>b")), 400, "messages[0].content[0].text", None),
    "too long a prompt": (request_of(text("a b " * 20_000)), 400, "messages", "context_length_exceeded"),
    "a file of the server": (request_of(image_url("file:///etc/passwd")), 400, IMAGE, None),
    "a path": (
        request_of({"type": "video_url", "video_url": {"url": "/etc/passwd"}}),
        400,
        "messages[0].content[0].video_url.url",
        None,
    ),
    "the web": (request_of(image_url("http://127.0.0.1/a.png")), 400, IMAGE, None),
    "no image": (request_of(image_url("data:image/png;base64,AAAA")), 400, IMAGE, None),
    "no base64": (request_of(image_url("data:image/png;base64,A*A")), 400, IMAGE, None),
    "a playlist": (request_of({"type": "video_url", "video_url": PLAYLIST}), 400, VIDEO, None),
    "too many images": (request_of(*[image_url(PIXEL)] * 65), 400, "messages", "invalid_value"),
    "sound": (request_of({"type": "input_audio", "input_audio": {}}), 400, "messages[0].content[0].type", "unsupported_value"),
}


@pytest.mark.parametrize(("options", "status", "param", "code"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_what_cannot_be_done_is_openais_error(client, server, options, status, param, code, is_streamed):
    with pytest.raises(openai.APIStatusError) as error:
        client.chat.completions.create(**{**HELLO, **options}, stream=is_streamed)
    assert (error.value.status_code, error.value.param) == (status, param)
    assert code is None or error.value.code == code
    assert "root:" not in error.value.message  # never what is in a file of the server
    line = error.value.response.json()["error"]["message"] if not is_streamed else error.value.message
    assert "\n" not in line and len(line) < 400
    wait_until(lambda: not server.chat.by_address)


def test_a_body_that_is_no_request_is_openais_error(server):
    too_long = b"[" * 100_000
    for body, status in ((b"", 400), (b"{", 400), (b"[]", 400), (b"\xff", 400), (too_long, 400), (b'{"model": NaN}', 400)):
        connection = http.client.HTTPConnection(*server.address, timeout=HANG)
        connection.request("POST", "/v1/chat/completions", body)
        response = connection.getresponse()
        assert response.status == status and json.loads(response.read())["error"]["type"] == "invalid_request_error"
        connection.close()
    connection = http.client.HTTPConnection(*server.address, timeout=HANG)
    connection.request("POST", "/v1/chat/completions", headers={"Content-Length": str(10**12)})
    with connection.getresponse() as response:  # the server closes: nothing else closes the socket of a body that is not read
        assert response.status == 413
    connection.close()


def test_a_page_of_another_site_asks_nothing(server):
    connection = http.client.HTTPConnection(*server.address, timeout=HANG)
    connection.request("POST", "/v1/chat/completions", json.dumps(HELLO), {"Origin": "https://evil.example"})
    response = connection.getresponse()
    assert response.status == 403 and json.loads(response.read())["error"]["code"] == "origin"
    connection.close()


def test_the_key_is_the_servers_token(processor):
    options: Any = {"server_limits": Limits(wrong_token_delay=0.01), "token": "long-enough-a-token"}
    with chat_server(processor, ScriptedGeneration(processor, TEXT), **options) as server:
        with pytest.raises(openai.AuthenticationError):
            server.client("wrong").chat.completions.create(**HELLO)
        assert server.client("long-enough-a-token").chat.completions.create(**HELLO).choices[0].message.content == TEXT
