"""svlm evaluate livesports: judged over HTTP and scored, as a user runs it, without a model."""

import json
import sys

import pytest

from svlm_jax.cli.evaluate import livesports, livesports_generate
from svlm_jax.errors import InputError
from tests.support.commentators import FakeCommentator
from tests.support.films import RED, film, plain
from tests.support.judge_server import MODEL, candidates, failure, judge_server, prefers

EVENTS = [
    {"video_id": "v", "event_id": n, "begin": 10.0 * n, "end": 10.0 * n + 9, "event_title": "", "class": "judo"}
    | {"video": "v.mp4", "preasr_text": "", "event_asr_text": "she throws her"}
    for n in range(4)
]
KEYS = ("video_id", "event_id", "begin", "end")


@pytest.fixture
def watchable(tmp_path):
    """The video of the events, 20 s of one colour."""
    return film(tmp_path / "v.mp4", [plain(RED)] * 40, fps=2)


def captions(path, *texts):
    """A published caption file; None: no line for the event."""
    said = {number: text for number, text in enumerate(texts) if text is not None}
    lines = [{**{key: EVENTS[number][key] for key in KEYS}, "pred": text} for number, text in said.items()]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def run(tmp_path, monkeypatch):
    def run(*args):
        monkeypatch.setattr(sys, "argv", ["svlm evaluate livesports", *map(str, args)])
        livesports.main()

    (tmp_path / "cc.json").write_text(json.dumps(EVENTS))
    monkeypatch.chdir(tmp_path)
    return run


JUDGE = ("judge", "--events", "cc.json", "--out", "scores", "--judge-model", "m", "--a", "ours.jsonl", "--b", "GPT-4o.jsonl")


def results():
    with open("scores/results.json") as file:
        return json.load(file)


def test_published_captions_are_the_baseline(run, tmp_path, capsys):
    """Ours is better in event 0, worse in 1, silent in 2 (a loss unasked), no better in 3: ballots A 2, B 4, tie 2."""
    captions(tmp_path / "ours.jsonl", "a THROW", "well", "...", "so")
    captions(tmp_path / "GPT-4o.jsonl", "hm", "a THROW", "anything", "hm")
    with judge_server(prefers("THROW")) as server:
        run(*JUDGE, "--judge-url", server.url)
        assert len(server.requests) == 6
        run(*JUDGE, "--judge-url", server.url)
        assert len(server.requests) == 6, "nothing is judged twice"
    found = results()
    assert found["ballots"] == {"A": 2, "B": 4, "tie": 2, "invalid": 0}
    assert found["metrics"][0]["value"] == 2 / 8 and found["metrics"][1]["value"] == 2 / 6
    assert found["without_words"]["A"] == ["v_2"] and found["judge"]["model"] == "m"
    assert found["answered_by"] == [f"{MODEL}-2026-11-28"]
    published = [json.loads(line) for line in (tmp_path / "scores" / "GPT-4o_ours.jsonl").read_text().splitlines()]
    assert published[0] == {"video_event_id": "v_0", "ab_winner": "ours", "ba_winner": "ours"}
    output = capsys.readouterr()
    assert "ours vs GPT-4o: 25.0 %" in output.out and "1 events without a word" in output.err


def test_a_judge_of_positions_is_found_out(run, tmp_path, capsys):
    captions(tmp_path / "ours.jsonl", *"abcd")
    captions(tmp_path / "GPT-4o.jsonl", *"efgh")
    with judge_server("Commentary A is better.") as server:
        run(*JUDGE, "--judge-url", server.url)
    assert results()["metrics"][0]["value"] == 0.5 and results()["events"]["inconsistent"] == 4
    assert "first both times 4" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:left out")
def test_a_missing_prediction_is_an_error_and_listed_where_it_is_allowed(run, tmp_path):
    captions(tmp_path / "ours.jsonl", "a", None, "c", "d")
    captions(tmp_path / "GPT-4o.jsonl", *"efgh")
    with judge_server("Commentary A is better.") as server:
        with pytest.raises(InputError, match=r"ours\.jsonl v_1: got no prediction"):
            run(*JUDGE, "--judge-url", server.url)
        assert not server.requests
        run(*JUDGE, "--judge-url", server.url, "--bad", 1)
    assert results()["missing"] == {"A": ["v_1"], "B": []} and results()["events"]["judged"] == 3


def test_what_was_not_judged_is_listed_and_asked_for_again_alone(run, tmp_path):
    captions(tmp_path / "ours.jsonl", *"abcd")
    captions(tmp_path / "GPT-4o.jsonl", *"efgh")
    with judge_server(lambda body, times: failure(400) if "c" in candidates(body) else "Tie.") as server:
        with pytest.raises(SystemExit) as exit:
            run(*JUDGE, "--judge-url", server.url)
        assert exit.value.code == 1
        assert list(results()["unresolved"]) == ["v_2"] and results()["events"]["judged"] == 3
    with judge_server("Tie.") as server:
        run(*JUDGE, "--judge-url", server.url)
        assert len(server.requests) == 2
    assert results()["events"]["ties"] == 4 and not results()["unresolved"]


def test_answers_are_scored_without_a_model(run, tmp_path, capsys):
    item = {"video_id": "v", "q_type": "who", "OCR": 0, "question": "Who?", "options": ["A. x", "B. y"], "answer": "B"}
    (tmp_path / "qa.json").write_text(json.dumps([item | {"question_id": n} for n in range(3)]))
    published = [{"video_id": "v", "questions": [{"question_id": n, "response": "B. y"} for n in range(2)]}]
    (tmp_path / "model.json").write_text(json.dumps(published))
    with pytest.raises(SystemExit) as exit:
        run("qa-score", "--items", "qa.json", "--answers", "model.json", "--out", "score.json")
    assert exit.value.code == 1
    assert json.loads((tmp_path / "score.json").read_text())["missing"] == ["v_2"]
    output = capsys.readouterr()
    assert "overall: 66.7 % of 3" in output.out and "1 questions without an answer (v_2" in output.err


GENERATE = ("generate", "--events", "cc.json", "--videos", ".", "--limit", 2)


def test_a_captioner_behind_a_server_sees_the_event(run, tmp_path, watchable):
    """9 s of an event, 5 frames of it; the answers are predictions, in the order of the keys."""
    with judge_server("A throw.") as server:
        captioner = ("--captioner-url", server.url, "--captioner-model", "gpt", "--frames", 5)
        run(*GENERATE, *captioner, "--out", "run")
        assert [count_pictures(body) for body in server.requests] == [5, 5]
        run(*GENERATE, *captioner, "--out", "run")
        assert len(server.requests) == 2
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert lines == [{**{key: event[key] for key in KEYS}, "pred": "A throw."} for event in EVENTS[:2]]


def count_pictures(body):
    return sum(part["type"] == "image_url" for message in body["messages"] for part in message["content"])


class Streams(FakeCommentator):
    stopped, num_streams = False, 1


def test_the_protocol_of_a_preset_is_its_published_one(run, tmp_path, watchable, monkeypatch):
    """--preset livecc: clocks begin at 0, 32 tokens, penalty 1.15, predictions end in "..."; a flag goes over it."""
    streams, given = Streams(lambda job, second: "hm"), []

    def make_commentator(args, **options):
        given.append(args)
        return streams

    monkeypatch.setattr(livesports_generate, "make_commentator", make_commentator)
    run(*GENERATE, "--out", "run", "--preset", "livecc", "--max-new-tokens", 8)
    assert (given[0].max_new_tokens, given[0].repetition_penalty, given[0].temperature) == (8, 1.15, 0.0)
    assert {job.clock for job in streams.watched} == {"clip"}
    first, _ = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    assert json.loads(first)["pred"] == " ".join(["hm"] * 9) + "..."
    run(*GENERATE, "--out", "recent", "--mode", "recent")
    assert not any(job.previous for job in streams.watched), "without memory there is no turn for it"
    with pytest.raises(InputError, match="--frames: got 4 with --mode stream"):
        run(*GENERATE, "--out", "x", "--frames", 4)
    with pytest.raises(InputError, match="run style"):
        run(*GENERATE, "--out", "run", "--preset", "livecc", "--style", "streamingvlm")
