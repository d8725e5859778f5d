"""Words of a video by a server: each at its second, each once, and none paid for twice whatever the server does."""

import json
import threading

import numpy as np
import pytest

from svlm_jax.curate.outcome import NotDone, SetAside
from svlm_jax.curate.transcribing.audio import encode
from svlm_jax.curate.transcribing.http_transcriber import HttpTranscriber
from svlm_jax.errors import InputError
from svlm_jax.remote.transcription_client import TranscriptionClient
from tests.support import HANG, wait_until
from tests.support.asr_server import GRANULARITIES, RATE, asr_server, sound_of, transcribes
from tests.support.films import film, plain
from tests.support.judge_server import (
    BROKEN,
    CUT,
    GARBAGE,
    HUNG_UP,
    KEY,
    RATE_LIMITED,
    WEB_PAGE,
    Fault,
    failure,
    slow,
)
from tests.support.speech import Ear, Track, espeak_voice, say, sounding_film

MODEL = "whisper-of-the-tests"
# Goals are said again and again, and most have next to no pause before them.
TEXT = [word for number in range(8) for word in (f"player{number % 5}", "shoots", "goal", "goal", "goal", "what", "a", "save")]
STARTS = [1.0 + 0.4 * index + 0.2 * (index // 3) for index in range(len(TEXT))]
SOUND, SPOKEN = say(TEXT, STARTS, STARTS[-1] + 2.0)
EAR = Ear(TEXT)
NANOSECONDS = Fault(body=json.dumps({"words": [{"word": "goal", "start": 2.4e9, "end": 2.7e9}]}))  # as LocalAI writes times


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No proxy before loopback, no key of the user, and no half seconds of waiting."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("svlm_jax.remote.connection.BODY_PAUSE", 0.001)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """32 s, for chunks of 30 s. A file of sound alone: what films do to sound is of `test_audio`."""
    path = tmp_path_factory.mktemp("sound") / "game.flac"
    path.write_bytes(encode(SOUND, "flac"))
    return path


def transcriber(server, cache=None, *, timeout=HANG, retries=6, **options) -> HttpTranscriber:
    client = TranscriptionClient(server.url, MODEL, cache=cache, timeout=timeout, retries=retries)
    return HttpTranscriber(client, **{"max_seconds": 30.0, **options})


def texts(transcription) -> list[str]:
    return [word.text for word in transcription.words]


def assert_as_spoken(transcription, within=0.05):
    assert texts(transcription) == TEXT
    for word, spoken in zip(transcription.words, SPOKEN, strict=True):
        assert word.start == pytest.approx(spoken.start, abs=within)
        assert word.end == pytest.approx(spoken.end, abs=within)


def is_second(body) -> bool:
    """Whether a request is of the second chunk: the first begins with a second of silence."""
    return bool(sound_of(body)[: RATE // 2].any())


def test_each_word_is_told_once_at_its_second_across_chunks(video):
    with asr_server(transcribes(EAR)) as server:
        transcription = transcriber(server).words(video, None)
    assert_as_spoken(transcription)
    assert transcription.language == "en"
    assert transcription.duration == pytest.approx(len(SOUND) / RATE)
    assert {word.probability for word in transcription.words} == {0.9048}  # of their segments: words come without
    assert transcription.counts["chunks"] == len(server.requests) == 2
    for body in server.requests:
        assert (body["model"], body["response_format"]) == (MODEL, "verbose_json")
        assert body[GRANULARITIES] == ["word", "segment"]
        assert len(sound_of(body)) <= 30 * RATE
        assert "language" not in body


def test_speech_of_espeak_keeps_its_words_and_times(tmp_path):
    voice = espeak_voice()
    """Stereo AAC at 44.1 kHz that begins 2.5 s after the picture, beside a track in another language."""
    words = ["and", "red", "shoots", "what", "a", "goal", "two", "one"]
    starts = [0.5 + 0.8 * index for index in range(len(words))]
    sound, spoken = say(words, starts, starts[-1] + 1.0, voice)
    other = Track(np.roll(sound, 8000), language="fra", layout="mono", rate=48_000)
    film = sounding_film(tmp_path / "game.mp4", other, Track(sound, 2.5, language="eng"), seconds=2)
    with asr_server(transcribes(Ear(words, voice, merge=0.2))) as server:
        transcription = transcriber(server).words(film, "en")
    assert texts(transcription) == words
    assert all(
        abs(word.start - each.start - 2.5) < 0.3 and abs(word.end - each.end - 2.5) < 0.3
        for word, each in zip(transcription.words, spoken, strict=True)
    )
    assert server.requests[0]["language"] == "en"
    assert "2 tracks of sound: 2 (eng) is heard" in transcription.changes[0].before


@pytest.mark.parametrize("refused", ["word", "all"])
def test_a_server_that_knows_no_times_of_words_is_asked_for_segments(video, refused):
    def respond(body, times):
        asked = body.get(GRANULARITIES, [])
        if "word" in asked or (refused == "all" and asked):
            return failure(400, "timestamp_granularities is not supported")
        return transcribes(EAR)(body, times)

    with asr_server(respond) as server:
        transcription = transcriber(server, concurrency=1).words(video, "en")
    assert_as_spoken(transcription)
    assert len(server.requests) == (3 if refused == "word" else 4)  # refused once, and remembered


@pytest.mark.parametrize("fault", [RATE_LIMITED, BROKEN, CUT, HUNG_UP, WEB_PAGE])
def test_a_server_that_fails_now_and_then_changes_no_word(video, fault):
    with asr_server(lambda body, times: fault if times == 0 else transcribes(EAR)(body, times)) as server:
        transcription = transcriber(server).words(video, "en")
    assert_as_spoken(transcription)
    assert len(server.requests) == 4


@pytest.mark.parametrize("fault", [failure(429, retry_after="999"), GARBAGE, NANOSECONDS])
def test_where_a_chunk_is_never_answered_the_video_waits_and_what_was_answered_is_not_paid_for_again(video, tmp_path, fault):
    def respond(body, times):
        return fault if is_second(body) else transcribes(EAR)(body, times)

    with asr_server(respond) as server, pytest.raises(NotDone, match="no transcription of a chunk"):
        transcriber(server, tmp_path, retries=1).words(video, "en")
    with asr_server(transcribes(EAR)) as server:
        assert_as_spoken(transcriber(server, tmp_path).words(video, "en"))
        assert len(server.requests) == 1
        assert_as_spoken(transcriber(server, tmp_path).words(video, "en"))
        assert len(server.requests) == 1
        transcriber(server, tmp_path, prompt="Reds").words(video, "en")  # another question
        assert len(server.requests) == 3


def test_what_is_under_way_when_another_chunk_fails_is_waited_for(video, tmp_path):
    """The server has worked for it, and is paid for it."""
    failed = threading.Event()

    def respond(body, times):
        if is_second(body):
            failed.set()
            return failure(400, "no")
        assert failed.wait(HANG)
        return transcribes(EAR)(body, times)

    with asr_server(respond) as server, pytest.raises(NotDone):
        transcriber(server, tmp_path, concurrency=2).words(video, "en")
    with asr_server(transcribes(EAR)) as server:
        assert_as_spoken(transcriber(server, tmp_path).words(video, "en"))
        assert len(server.requests) == 1


def test_a_server_that_is_too_slow_is_asked_again_and_then_given_up(video):
    with asr_server(slow("", 60.0)) as server:
        with pytest.raises(NotDone, match="timed out"):
            transcriber(server, timeout=0.3, retries=1, concurrency=1).words(video, "en")
        wait_until(lambda: len(server.requests) == 2)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (failure(401, f"Incorrect API key: {KEY}"), "--asr-url .*the key in .OPENAI_API_KEY is refused"),
        (failure(404, "no such model"), f"404 for the model {MODEL}"),
        (failure(429, "quota", "insufficient_quota", retry_after="0.01"), "no credit"),
        (failure(413, "too large"), "413: .* MB are more than it takes.*lower --asr-megabytes"),
        (failure(400, "response_format 'verbose_json' is not compatible with this model"), "another --asr-model"),
        (Fault(body=json.dumps({"text": "what a goal"})), "a text without times"),
    ],
)
def test_what_concerns_all_videos_is_one_line(video, fault, words):
    with asr_server(fault) as server, pytest.raises(InputError, match=words) as error:
        transcriber(server).words(video, "en")
    assert KEY not in str(error.value)
    assert len(str(error.value)) < 300


def test_the_key_is_sent_and_is_in_no_file_and_no_setting(video, tmp_path):
    with asr_server(transcribes(EAR)) as server:
        asking = transcriber(server, tmp_path)
        asking.words(video, "en")
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert all(KEY.encode() not in content for content in files)
    assert KEY not in json.dumps(asking.settings)
    assert server.url not in json.dumps(asking.settings)  # the same model behind another address gives the same words


def test_silence_is_not_sent_and_a_film_without_sound_is_set_aside(tmp_path):
    with asr_server(transcribes(EAR)) as server:
        quiet = sounding_film(tmp_path / "quiet.mkv", Track(SOUND[: 3 * RATE] * 0, layout="mono"))
        assert texts(transcriber(server).words(quiet, None)) == []
        with pytest.raises(SetAside, match="no track of sound"):
            transcriber(server).words(film(tmp_path / "silent.mp4", [plain((90, 90, 90))] * 3), None)
        assert server.requests == []


def test_music_is_told_where_the_server_takes_it_for_no_speech(video):
    segment = {"start": 0.0, "end": 30.0, "text": "Thank you.", "avg_logprob": -1.5, "no_speech_prob": 0.9}
    with asr_server(Fault(body=json.dumps({"language": "en", "segments": [segment]}))) as server:
        transcription = transcriber(server).words(video, None)
    [first, second] = transcription.no_speech
    assert first.end == second.start  # each to the cut
    assert transcription.no_speech[0].probability == 0.9


def test_what_it_will_cost_is_told_before(video):
    with asr_server(transcribes(EAR)) as server:
        asking = transcriber(server)
        assert asking.estimate([video, video], 0.006) == "1.3 minutes of sound in 2 videos, 0.01 at 0.006 a minute"
        assert server.requests == []


def test_chunks_that_are_too_small_to_overlap_are_refused():
    client = TranscriptionClient("http://127.0.0.1:1/v1", MODEL)
    with pytest.raises(InputError, match="raise --asr-seconds or --asr-megabytes"):
        HttpTranscriber(client, max_megabytes=0.5)
