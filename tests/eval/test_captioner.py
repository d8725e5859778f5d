"""A model behind a server sees the frames that the protocol says, and a benchmark gets each answer once."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from svlm_jax.errors import InputError
from svlm_jax.eval.captioner import QUERY, ChatCommentator, ChatModel, num_frames, segment_frames
from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.commentator import Job
from svlm_jax.eval.frames import FrameSet
from svlm_jax.eval.models import Request
from svlm_jax.media.video import write_video
from svlm_jax.remote.chat_client import ChatClient
from tests.support.judge_server import BROKEN, CUT, MODEL, Fault, completion, failure, judge_server, prompt_text

SECONDS = 12


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("svlm_jax.remote.connection.BODY_PAUSE", 0.001)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Twice as high as a server is sent; each second is brighter than the one before."""
    path = tmp_path_factory.mktemp("videos") / "game.mp4"
    write_video(path, (np.full((720, 64, 3), 20 * second, np.uint8) for second in range(SECONDS + 1)), 1)
    return path


def pictures(body) -> list[Image.Image]:
    urls = [part["image_url"]["url"] for part in body["messages"][-1]["content"] if part["type"] == "image_url"]
    assert all(url.startswith("data:image/jpeg;base64,") for url in urls)
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


def client(server, **options) -> ChatClient:
    return ChatClient(server.url, MODEL, flag="--captioner", **options)


@pytest.mark.parametrize(("seconds", "count"), [(100, 26), (240, 60), (1000, 60), (12, 4), (10, 3), (3, 2), (0.4, 2)])
def test_a_frame_every_four_seconds_with_both_ends_and_sixty_at_most(seconds, count):
    """100 s / 4 s = 25 steps, so 26 frames."""
    assert num_frames(seconds) == count


def test_frames_of_a_segment_are_of_its_start_and_its_end(video):
    frames = segment_frames(video, 0, SECONDS)
    levels = [round(float(each.mean()) / 20) for each in frames.pixels]
    assert levels == [0, 3, 7, 11]  # at 0, 3.98, 7.97 and 11.95 s


def test_a_segment_becomes_one_utterance_from_pictures_of_the_published_size(video):
    job = Job("game/0", video, 4.0, SECONDS, query="Describe the game.", previous="they line up")
    with judge_server("  And he scores! ") as server:
        [finished] = ChatCommentator(client(server)).run([job])
    assert finished.utterances == (Utterance(4.0, SECONDS, "And he scores!"),)
    assert finished.error == ""
    [body] = server.requests
    assert body["messages"][0]["role"] == "system"
    assert [image.size for image in pictures(body)] == [(32, 360)] * 3
    assert body["messages"][-1]["content"][0]["type"] == "text"
    assert "Describe the game.\nThe frames are of second 4 to 12, one every 4 s." in prompt_text(body)
    assert "they line up" not in prompt_text(body)
    assert "temperature" not in body
    with judge_server("yes") as server:
        clip = job._replace(clock="clip", query="")
        list(ChatCommentator(client(server), with_previous=True).run([clip]))
    assert f"{QUERY}\nWhat was said before:\nthey line up\nThe frames are of second 0 to 8" in prompt_text(server.requests[0])


def test_a_segment_that_is_not_answered_comes_with_an_error_and_the_others_are_there(video, tmp_path):
    """A window that failed must not be taken for a model that was silent."""
    jobs = [Job(f"{start}", video, start, start + 4.0) for start in (0.0, 4.0, 8.0)]
    jobs.append(Job("gone", tmp_path / "gone.mp4", 0.0, 4.0))
    jobs.append(Job("asked", video, 0.0, 8.0, questions=((3.0, "who?"),)))

    def respond(body, times):
        return BROKEN if "second 4 to 8" in prompt_text(body) else CUT if times == 0 else "fine"

    with judge_server(respond) as server:
        commentator = ChatCommentator(client(server, retries=1), concurrency=2)
        finished = {each.job.key: each for each in commentator.run(jobs, skip=["8.0"])}
    assert finished.keys() == {"0.0", "4.0", "gone", "asked"}
    assert finished["0.0"].utterances[0].text == "fine"
    assert finished["4.0"].utterances == ()
    assert "500" in finished["4.0"].error
    assert "gone.mp4" in finished["gone"].error
    assert finished["asked"].answers[0].refused


def test_a_run_that_goes_on_pays_for_no_segment_twice(video, tmp_path):
    jobs = [Job(f"{start}", video, start, start + 4.0) for start in (0.0, 4.0)]
    with judge_server("fine") as server:
        list(ChatCommentator(client(server, cache=tmp_path)).run(jobs, skip=["4.0"]))
        assert len(list(ChatCommentator(client(server, cache=tmp_path)).run(jobs))) == 2
        assert len(server.requests) == 2
    entries = [json.loads(path.read_text()) for path in tmp_path.rglob("*.json")]
    assert all("sha256:" in json.dumps(entry["request"]) and "base64" not in json.dumps(entry) for entry in entries)


def test_a_question_is_asked_after_its_pictures_at_temperature_0():
    frames = FrameSet(np.zeros((3, 48, 64, 3), np.uint8), 0.5, 10.0)
    with judge_server("B") as server:
        model = ChatModel(client(server))
        assert model.answer(Request("Which?", frames, "Be brief.", 7)) == "B"
        assert model.answer(Request("Which?")) == "B"
    first, second = server.requests
    assert (first["temperature"], first["max_tokens"]) == (0, 7)
    assert [part["type"] for part in first["messages"][1]["content"]] == ["text", *["image_url"] * 3, "text"]
    assert "3 frames of a video from second 10 on, one every 2 s" in prompt_text(first)
    assert prompt_text(first).endswith("Which?")
    assert len(second["messages"]) == 1


def test_a_model_that_spends_its_tokens_on_thoughts_is_asked_without_a_limit():
    cut_off = json.loads(completion(""))
    cut_off["choices"][0]["finish_reason"] = "length"

    def respond(body, _):
        if "max_tokens" in body:
            return failure(
                400, "'max_tokens' is not supported, use 'max_completion_tokens'.", "unsupported_parameter", "max_tokens"
            )
        return Fault(body=json.dumps(cut_off)) if "max_completion_tokens" in body else "<think>B? No.</think> C"

    with judge_server(respond) as server:
        assert ChatModel(client(server)).answer(Request("Which?", max_new_tokens=5)) == "C"
    assert [body.get("max_completion_tokens") for body in server.requests] == [None, 5, None]


def test_a_server_that_does_not_answer_ends_the_run_in_one_line():
    with judge_server(BROKEN) as server, pytest.raises(InputError, match=r"--captioner-url: got no answer \(500"):
        ChatModel(client(server, retries=0)).answer(Request("Which?"))
