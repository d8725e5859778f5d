"""Claims about /v1/chat/completions and /v1/models, as the official openai client sees them. Real sockets on a free port."""

import base64
import http.client
import io
import json
import weakref
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from svlm_jax import from_pretrained
from svlm_jax.decode.sampling import Sampling
from svlm_jax.decode.sliced import SlicedGeneration, SliceSizes
from svlm_jax.errors import InputError
from svlm_jax.families.chat import Turn, encode
from svlm_jax.media.processor import Processor
from svlm_jax.media.video import write_video
from svlm_jax.serve.chat.completions import Chat, TooManyRequests, bare
from svlm_jax.serve.chat.limits import ChatLimits
from svlm_jax.serve.chat.media import MediaReader
from svlm_jax.serve.chat.request import Media
from svlm_jax.serve.json_fields import RequestError
from svlm_jax.stream.stream_settings import StreamSettings
from tests.support import HANG, wait_until
from tests.support.chat_server import (  # noqa: F401
    HELLO,
    MODEL,
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
from tests.support.fake_engine import ScriptedFeed


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A video as a data: URI."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, [picture(seed // 4) for seed in range(12)], 8)
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


# --- replies ---


def test_a_reply_has_its_text_its_end_and_its_usage(client, server):
    reply = client.chat.completions.create(**HELLO)
    assert reply.choices[0].message.content == TEXT and reply.choices[0].finish_reason == "stop"
    assert (reply.object, reply.model, reply.choices[0].message.role) == ("chat.completion", MODEL, "assistant")
    assert reply.usage.prompt_tokens == len(server.generation.samples[-1].ids)
    assert reply.usage.completion_tokens == len(server.generation.ids)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_streamed_reply_is_the_same_in_parts(client):
    stream = client.chat.completions.create(**HELLO, stream=True, stream_options={"include_usage": True})
    *chunks, last = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT and len(chunks) > 4
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert last.choices == [] and last.usage.total_tokens > last.usage.completion_tokens > 4
    assert len({chunk.id for chunk in (*chunks, last)}) == 1
    assert all(chunk.usage is None for chunk in chunks)
    without = list(client.chat.completions.create(**HELLO, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in without)


def test_a_stream_ends_with_done(server):
    """Else clients that are not OpenAI's wait for ever."""
    connection = http.client.HTTPConnection(*server.address, timeout=HANG)
    connection.request("POST", "/v1/chat/completions", json.dumps({**HELLO, "stream": True}))
    response = connection.getresponse()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.read().decode().endswith("data: [DONE]\n\n")
    connection.close()


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_reply_may_be_cut(client, server, name):
    reply = client.chat.completions.create(**HELLO, **{name: 3})
    assert reply.choices[0].finish_reason == "length" and reply.usage.completion_tokens == 3
    assert TEXT.startswith(reply.choices[0].message.content)


@pytest.mark.parametrize("stop", [" Blue", ["goal", ", and"], "s. B"])
def test_a_stop_text_is_in_no_part_of_the_reply(client, stop):
    """Else the half of it that came first is on a screen already."""
    first = min(TEXT.index(each) for each in ([stop] if isinstance(stop, str) else stop))
    reply = client.chat.completions.create(**HELLO, stop=stop)
    assert reply.choices[0].message.content == TEXT[:first].strip() and reply.choices[0].finish_reason == "stop"
    parts = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**HELLO, stop=stop, stream=True)]
    assert "".join(parts) == TEXT[:first].strip()


def test_sampling_is_what_was_asked_for_and_else_the_models(client, server):
    client.chat.completions.create(**HELLO, temperature=0.5, top_p=0.9, seed=-3, extra_body={"top_k": 7})
    options = server.generation.options[-1]
    assert options["sampling"] == Sampling(temperature=0.5, top_p=0.9, top_k=7) and options["seed"] == -3
    seeds = []
    for _ in range(2):
        client.chat.completions.create(**HELLO)
        assert server.generation.options[-1]["sampling"] == Sampling()
        seeds.append(server.generation.options[-1]["seed"])
    assert seeds[0] != seeds[1]


def test_the_models_of_the_server_are_listed(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "svlm"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("gpt-4")
    assert error.value.code == "model_not_found"


# --- prompts ---


def test_a_conversation_becomes_the_tokens_of_the_models_chat_template(client, server, processor, film):
    """Else the model reads something that it was not trained on."""
    pytest.importorskip("jinja2")  # which transformers renders templates with; torch brings it
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [image_url(data_uri(picture())), text("What is this?")]},
        {"role": "assistant", "content": "Noise."},
        {"role": "user", "content": [text("And this?"), {"type": "video_url", "video_url": {"url": film}}, text("Say.")]},
    ]
    client.chat.completions.create(model=MODEL, messages=messages)
    sample, tokenizer = server.generation.samples[-1], processor.tokenizer
    rendered = tokenizer.apply_chat_template(
        [
            {**message, "content": [{"type": "video"} if part["type"] == "video_url" else part for part in message["content"]]}
            if isinstance(message["content"], list)
            else message
            for message in messages
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    for clip, pad in zip(sample.clips, ("<|image_pad|>", "<|video_pad|>"), strict=True):
        count = len(clip.patches) // processor.config.vision.merge_unit
        rendered = rendered.replace(pad, "<|pad|>" * count, 1).replace("<|pad|>", pad)
    assert sample.ids.tolist() == tokenizer.encode(rendered, add_special_tokens=False)
    assert [clip.video for clip in sample.clips] == [False, True]


def test_media_are_what_the_processor_makes_of_them(client, server, processor, film):
    client.chat.completions.create(
        **request_of(image_url(data_uri(picture())), {"type": "video_url", "video_url": {"url": film, "fps": 4}}, text("?"))
    )
    image, video = server.generation.samples[-1].clips
    np.testing.assert_array_equal(image.patches, processor.image(picture(), raw=True).patches)
    assert (video.grid[0], video.step) == (3, processor.config.vision.temporal_step(4))


def test_a_photo_is_upright(client, server):
    """Phones store how they were held beside the pixels."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(size=(280, 560))).save(file, "JPEG", exif=exif)
    url = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    client.chat.completions.create(**request_of(image_url(url)))
    _, height, width = server.generation.samples[-1].clips[0].grid
    assert height > width


def test_an_image_has_as_many_tokens_as_its_detail_asks_for(processor):
    reader = MediaReader(Processor(processor.config, processor.tokenizer), ChatLimits(max_image_tokens=400))
    url, tokens = data_uri(picture(size=(700, 700)), "JPEG"), {}
    for detail in ("low", "high"):
        clip = reader.clip(Media(url, "url", is_video=False, is_small=detail == "low"))
        tokens[detail] = len(clip.patches) // 4
    assert 200 < tokens["low"] <= 256 < tokens["high"] <= 400


# --- many, and those who leave ---


def test_more_requests_than_are_taken_wait_for_nothing(server):
    """Else memory grows with whoever asks most."""
    client, generation = server.client(), server.generation
    generation.has_begun.clear()
    generation.may_go_on.clear()
    streams = [client.chat.completions.create(**HELLO, stream=True)]
    wait_until(generation.has_begun.is_set)
    streams += [client.chat.completions.create(**HELLO, stream=True)]
    # the third waits for memory: it has no status yet
    third = http.client.HTTPConnection(*server.address, timeout=HANG)
    third.request("POST", "/v1/chat/completions", json.dumps(HELLO))
    wait_until(lambda: server.chat.by_address.total() == 3)
    with pytest.raises(openai.RateLimitError) as error:
        client.chat.completions.create(**HELLO)
    assert error.value.code == "rate_limit_exceeded" and error.value.response.headers["retry-after"] == "5"
    generation.may_go_on.set()
    for stream in streams:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == TEXT
    assert json.loads(third.getresponse().read())["choices"][0]["message"]["content"] == TEXT
    third.close()
    wait_until(lambda: not server.chat.by_address and not generation.num_open)


def test_bodies_that_wait_have_a_limit_in_all(server, processor):
    """Else a few clients with large files take all of the memory while they wait for their turn."""
    chat = Chat(server.generation, server.chat.media, server.engine.submit, ChatLimits(max_open_bytes=100), server.metrics)
    with chat.admission("192.0.2.1", 150), pytest.raises(TooManyRequests, match="150 bytes"), chat.admission("192.0.2.2", 1):
        pass
    with chat.admission("192.0.2.1", 60), chat.admission("192.0.2.2", 40):  # the one before is over
        assert chat.open_bytes == 100
    assert not chat.open_bytes
    chat.close()


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_a_client_that_leaves_frees_what_it_had(server, is_streamed):
    generation, cancelled = server.generation, server.metrics.value("svlm_chat_requests_total", "cancelled")
    generation.has_begun.clear()
    generation.may_go_on.clear()
    connection = http.client.HTTPConnection(*server.address, timeout=HANG)
    connection.request("POST", "/v1/chat/completions", json.dumps({**HELLO, "stream": is_streamed}))
    wait_until(generation.has_begun.is_set)
    assert generation.num_open == 1
    connection.close()
    wait_until(lambda: server.metrics.value("svlm_chat_requests_total", "cancelled") == cancelled + 1)
    generation.may_go_on.set()
    wait_until(lambda: not generation.num_open and not server.chat.by_address)
    assert server.client().chat.completions.create(**HELLO).choices[0].message.content == TEXT


def test_a_device_that_fails_is_told_and_the_next_request_is_answered(server, capsys):
    server.generation.error = RuntimeError("RESOURCE_EXHAUSTED: secret details")
    try:
        with pytest.raises(openai.InternalServerError) as error:
            server.client().chat.completions.create(**HELLO)
        assert error.value.status_code == 503 and "secret" not in str(error.value)
        stream = server.client().chat.completions.create(**HELLO, stream=True)
        with pytest.raises(openai.APIError, match="could not compute"):
            list(stream)
    finally:
        server.generation.error = None
    assert server.client().chat.completions.create(**HELLO).choices[0].message.content == TEXT
    wait_until(lambda: not server.chat.by_address and not server.generation.num_open)


def test_streams_go_on_while_a_request_is_answered(server):
    """Else somebody's long prompt drops the seconds of everybody's videos."""
    generation, feed = server.generation, ScriptedFeed()
    generation.has_begun.clear()
    generation.may_go_on.clear()
    server.engine.open("film", feed, StreamSettings())
    stream = server.client().chat.completions.create(**HELLO, stream=True)
    wait_until(generation.has_begun.is_set)  # the engine's thread stands in a slice; chunks come
    feed.give(3)
    generation.may_go_on.set()
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == TEXT
    wait_until(lambda: server.metrics.value("svlm_chunks_total") == 3)
    assert server.metrics.value("svlm_dropped_chunks_total") == 0
    server.engine.end("film", "over")


def test_a_url_is_fetched_where_the_operator_allows_it(processor):
    """And what it names is bounded as what is sent is."""
    file = base64.b64decode(data_uri(picture()).partition(",")[2])
    files = {"https://media.example/a.png": file, "https://media.example/b": b"#EXTM3U"}
    with chat_server(processor, ScriptedGeneration(processor, TEXT), fetch=lambda url, field: files[url]) as server:
        client = server.client()
        client.chat.completions.create(**request_of(image_url("https://media.example/a.png"), text("?")))
        wanted = processor.image(picture(), raw=True).patches
        np.testing.assert_array_equal(server.generation.samples[-1].clips[0].patches, wanted)
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**request_of({"type": "video_url", "video_url": {"url": "https://media.example/b"}}))
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**request_of(image_url("file:///etc/passwd")))


# --- with a model ---


@pytest.mark.slow  # its parts are claims of tests/decode/test_sliced.py and of those above
def test_a_reply_is_that_of_the_library(shallow_dir, processor_dir, film):
    """Text, an image and a video, whole and streamed: the words of `Pretrained.replies`, greedy and drawn."""
    vlm = from_pretrained(shallow_dir, processor=processor_dir)
    sizes = SliceSizes(patches=64, tokens=64, reply=3)
    generation = SlicedGeneration(vlm.model, vlm.eos_token_ids, sizes=sizes, max_reply_tokens=32)
    limits = ChatLimits()
    reader = MediaReader(vlm.processor, limits)
    messages: Any = [
        {"role": "user", "content": [image_url(data_uri(picture())), {"type": "video_url", "video_url": film}, text("Well?")]}
    ]
    with chat_server(vlm.processor, generation, limits=limits) as server:
        client = server.client()
        for options in ({}, {"temperature": 1.0, "seed": 5}):
            reply = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=20, **options)
            stream = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=20, stream=True, **options)
            sample = generation_sample(vlm, reader, film)
            sampling = Sampling(temperature=options.get("temperature", 0.0))
            wanted = vlm.replies([sample], max_new_tokens=20, sampling=sampling, seed=options.get("seed", 0))[0]
            assert (reply.choices[0].message.content, reply.usage.completion_tokens) == wanted
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == wanted.text


def generation_sample(vlm, reader, film):
    clips = [reader.clip(Media(url, "url", is_video)) for url, is_video in ((data_uri(picture()), False), (film, True))]
    return encode([Turn("user", (*clips, "Well?"))], vlm.tokenizer, vlm.model.config)


def test_a_refused_request_keeps_no_decoder_in_memory():
    """Whatever holds the error: a video of 4K that is refused has 300 MB of frames in its decoder."""
    decoders: weakref.WeakSet[Any] = weakref.WeakSet()

    class Decoder:
        pass

    def read() -> None:
        decoder = Decoder()  # held by the frame that an exception points to
        decoders.add(decoder)
        try:
            raise InputError("video", "frames", "fewer", "send less")
        except InputError as error:
            raise RequestError("url", error.got, error.expected, error.remedy) from None

    with pytest.raises(RequestError) as refused:
        bare(read)
    assert refused.value.field == "url" and not decoders
