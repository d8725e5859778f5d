"""A judge over HTTP: what its answers mean, and that no fault of a server changes a number or loses a vote."""

import json
import sys

import pytest

from svlm_jax.errors import InputError
from svlm_jax.eval.http_judge import FIELDS, MAX_CHARACTERS, STYLES, HttpJudge, parse_commentary, parse_letter
from svlm_jax.eval.judging import Candidate, Pair, judge_pairs, served, unresolved
from svlm_jax.remote.chat_client import ChatClient
from svlm_jax.remote.prompt import Prompt
from tests.support import wait_until
from tests.support.judge_server import (
    BROKEN,
    CUT,
    EMPTY,
    GARBAGE,
    HUNG_UP,
    KEY,
    MODEL,
    NO_TEMPERATURE,
    RATE_LIMITED,
    REFUSAL,
    VERY_LONG,
    candidates,
    failure,
    judge_server,
    prefers,
    prompt_text,
    slow,
)


def pair(key: str, a: str = "what a goal", b: str = "grass is green") -> Pair:
    return Pair(key, "game.mp4", 0.0, 100.0, "he scores", Candidate(f"{a} ({key})"), Candidate(f"{b} ({key})"))


PAIRS = [pair(f"segment {number}") for number in range(8)]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No proxy before loopback, no key of the user, and no half seconds of waiting."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("svlm_jax.remote.connection.BODY_PAUSE", 0.001)


def judge(server, style="infstreams", prompt=None, **options) -> HttpJudge:
    return HttpJudge(ChatClient(server.url, MODEL, **options), style, prompt)


@pytest.mark.parametrize(
    ("answer", "vote"),
    [
        ("A", "A"),
        ("B", "B"),
        (" a.", "A"),
        ("b\n", "B"),
        ("**A**", "A"),
        ("'B'", "B"),
        ("(A)", "A"),
        ("Answer: B", "B"),
        ("answer: **B**.", "B"),
        ("Candidate B is livelier.", "B"),
        ("A is better.", "A"),
        ("Candidate A sounds like a broadcast.", "A"),
        ("commentary **A** keeps up better", "A"),
        ("Candidate A sounds better than candidate B.", None),
        ("A\n\nBecause B reads like a report.", "A"),
        ("The better one is A", "A"),
        ("I think B is better than A", None),
        ("A or B", None),
        ("Both A and B are fine.", None),
        ("A lively call of the play.", None),
        ("As an AI, I cannot judge this.", None),
        ("I'm sorry, but I can't help with that.", None),
        ("Abba", None),
        ("tie", None),
        ("", None),
        ("C", None),
    ],
)
def test_a_letter_is_the_one_that_an_answer_names_alone(answer, vote):
    """The published rule, "begins with A, else B", gives every refusal and every empty answer to B."""
    assert parse_letter(answer) == vote


@pytest.mark.parametrize(
    ("answer", "vote"),
    [
        ("Commentary A is better.", "A"),
        ("**Commentary B** is better aligned.", "B"),
        ("commentary b", "B"),
        ("B", "B"),
        ("Tie.", "tie"),
        ("They are equally close.", "tie"),
        ("Commentary A and commentary B tie.", None),
        ("Commentary A is better than Commentary B.", None),
        ("I cannot decide.", None),
        ("", None),
    ],
)
def test_a_commentary_is_the_one_that_an_answer_names_or_a_tie(answer, vote):
    """The published rule counts what it does not understand as a tie."""
    assert parse_commentary(answer) == vote


def test_a_fair_judge_gives_both_orders_to_the_same_candidate(tmp_path):
    with judge_server(prefers("goal")) as server:
        judgements = judge_pairs(PAIRS, judge(server), tmp_path / "votes.jsonl")
        swapped = Pair("other", "game.mp4", 0, 100, "he scores", Candidate("dull"), Candidate("a goal"))
        [other] = judge_pairs([swapped], judge(server, "livesports"), tmp_path / "other.jsonl")
    assert all((each.ab.vote, each.ba.vote) == ("A", "A") for each in judgements)
    assert (other.ab.vote, other.ba.vote) == ("B", "B")
    assert served(judgements) == {"served_models": {f"{MODEL}-2026-11-28": 16}, "served_temperatures": {"0": 16}}
    assert judgements[0].ab.details == {"model": f"{MODEL}-2026-11-28", "temperature": 0.0}


def test_a_judge_that_always_says_a_contradicts_itself_on_every_pair(tmp_path):
    with judge_server("A") as server:
        judgements = judge_pairs(PAIRS, judge(server), tmp_path / "votes.jsonl")
    assert all((each.ab.vote, each.ba.vote) == ("A", "B") for each in judgements)


@pytest.mark.parametrize("style", STYLES)
def test_the_judge_reads_both_candidates_and_the_reference_at_temperature_0(style):
    with judge_server("A") as server:
        judge(server, style).vote(PAIRS[0], False)
        judge(server, style).vote(PAIRS[0], True)
    first, second = server.requests
    assert candidates(first) == (PAIRS[0].a.text, PAIRS[0].b.text)
    assert candidates(second) == candidates(first)[::-1]
    assert "he scores" in prompt_text(first)
    assert first["temperature"] == 0
    assert first["model"] == MODEL


@pytest.mark.parametrize("answer", [REFUSAL, EMPTY, VERY_LONG, failure(400, "no", "content_filter")])
def test_what_is_no_verdict_is_asked_for_once_more_and_then_invalid(answer, tmp_path):
    with judge_server(answer) as server:
        [judgement] = judge_pairs(PAIRS[:1], judge(server), tmp_path / "votes.jsonl", concurrency=1)
        assert (judgement.ab.vote, judgement.ba.vote, judgement.error) == ("invalid", "invalid", "")
        assert len(server.requests) == 4
        assert prompt_text(server.requests[1]).endswith(STYLES["infstreams"].reminder)
        again = judge_pairs(PAIRS[:1], judge(server), tmp_path / "votes.jsonl")  # invalid is a verdict: not asked again
        assert again == [judgement]
        assert len(server.requests) == 4
    with judge_server(lambda body, _: "B" if STYLES["infstreams"].reminder in prompt_text(body) else "Both A and B") as server:
        ballot = judge(server).vote(PAIRS[0], False)
    assert (ballot.vote, ballot.details["first_answer"]) == ("B", "Both A and B")


@pytest.mark.parametrize("fault", [RATE_LIMITED, failure(429), BROKEN, CUT, HUNG_UP, GARBAGE, failure(408), failure(503)])
def test_a_server_that_fails_now_and_then_changes_no_vote(fault, tmp_path):
    with judge_server(lambda body, times: fault if times == 0 else "A") as server:
        judgements = judge_pairs(PAIRS[:2], judge(server), tmp_path / "votes.jsonl", concurrency=2)
        assert len(server.requests) == 8
    assert [(each.ab.vote, each.ba.vote, each.error) for each in judgements] == [("A", "B", "")] * 2


@pytest.mark.parametrize("fault", [RATE_LIMITED, failure(429, retry_after="999"), BROKEN, HUNG_UP, GARBAGE])
def test_a_segment_that_is_never_answered_is_unresolved_and_asked_for_alone_by_the_next_run(fault, tmp_path):
    path = tmp_path / "votes.jsonl"

    def respond(body, _):
        return fault if "segment 2" in prompt_text(body) else "A"

    with judge_server(respond) as server:
        left = unresolved(judge_pairs(PAIRS[:4], judge(server, retries=1), path, concurrency=4))
    assert [each.pair.key for each in left] == ["segment 2"]
    assert left[0].error
    with judge_server("A") as server:
        judgements = judge_pairs(PAIRS[:4], judge(server), path)
        assert len(server.requests) == 2
        assert all("segment 2" in prompt_text(body) for body in server.requests)
    assert unresolved(judgements) == []


def test_a_server_that_is_too_slow_is_asked_again_and_then_given_up(tmp_path):
    with judge_server(slow("A", 60.0)) as server:
        asking = judge(server, retries=1, timeout=0.2)
        [judgement] = judge_pairs(PAIRS[:1], asking, tmp_path / "votes.jsonl")
        wait_until(lambda: len(server.requests) == 4)  # each order twice
    assert "timed out" in judgement.error


@pytest.mark.parametrize(("answer", "vote"), [("<think>B? No.</think>\n\nA", "A"), ("<think>It could be B", "invalid")])
def test_thoughts_are_no_verdict(answer, vote):
    with judge_server(answer) as server:
        assert judge(server).vote(PAIRS[0], False).vote == vote


def test_a_model_that_refuses_the_temperature_is_asked_without_it_from_then_on(tmp_path):
    with judge_server(lambda body, _: NO_TEMPERATURE if "temperature" in body else "A") as server:
        asking = judge(server, cache=tmp_path / "cache")
        ballots = [asking.vote(each, False) for each in PAIRS[:3]]
        assert len(server.requests) == 4
        assert asking.settings()["temperature"] == 0  # as asked for; the ballots say what came of it
        assert all(ballot.details["temperature"] is None for ballot in ballots)
        assert judge(server, cache=tmp_path / "cache").vote(PAIRS[0], False) == ballots[0]  # found under what was asked for
        assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (failure(401, f"Incorrect API key: {KEY}"), "the key in $OPENAI_API_KEY is refused"),
        (failure(404, "no such model"), "404 for the model judge-model"),
        (failure(429, "quota", "insufficient_quota", retry_after="0.01"), "no credit"),
    ],
)
def test_what_concerns_all_requests_ends_the_run_in_one_line(fault, words, tmp_path):
    with judge_server(fault) as server, pytest.raises(InputError) as error:
        judge_pairs(PAIRS, judge(server), tmp_path / "votes.jsonl")
    assert words in str(error.value)
    assert KEY not in str(error.value)


def test_the_key_is_sent_and_is_in_no_file_and_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY.upper())
    fault = failure(403, f"{KEY.upper()} may not")
    with judge_server(lambda body, _: fault if "segment 1" in prompt_text(body) else "A") as server:
        asking = judge(server, key_env="JUDGE_KEY", cache=tmp_path / "cache")
        judgements = judge_pairs(PAIRS, asking, tmp_path / "votes.jsonl")
    assert server.headers[0]["authorization"] == f"Bearer {KEY.upper()}"
    assert "*** may not" in judgements[1].error
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert written
    assert KEY.upper().encode() not in written
    assert KEY.upper() not in json.dumps(asking.settings())


def test_a_key_that_is_named_and_not_there_is_told_without_it_before_anything_is_asked(monkeypatch):
    for name, words in (("MY_KEY", "MY_KEY, which is not set"), (KEY, "no name of a variable")):
        with pytest.raises(InputError, match=words) as error:
            ChatClient("http://127.0.0.1:1/v1", MODEL, key_env=name)
        assert KEY not in str(error.value)
    monkeypatch.setenv("MY_KEY", f"{KEY}é")
    with pytest.raises(InputError, match="letters that no key has"):
        ChatClient("http://127.0.0.1:1/v1", MODEL, key_env="MY_KEY")


@pytest.mark.parametrize("url", ["localhost:8000", "", "http://", "http://[", "http://host:port/v1", "http://me:word@[/v1"])
def test_what_is_no_address_is_refused_before_anything_is_asked(url):
    with pytest.raises(InputError, match="--judge-url") as error:
        ChatClient(url, MODEL)
    assert "word" not in str(error.value)


def test_without_the_openai_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match=r"pip install 'svlm-jax\[evaluate\]'"):
        ChatClient("http://127.0.0.1:1/v1", MODEL)


def test_long_candidates_are_cut_and_it_is_told(tmp_path):
    long = pair("long", a="word " * 5000)
    with judge_server("A") as server:
        asking = judge(server)
        ballot = asking.vote(long, True)
        told = []
        judge_pairs(
            [long, PAIRS[0]], asking, tmp_path / "votes.jsonl", announce=lambda asked: told.append(asking.estimate(asked))
        )
        whole = judge(server, "livesports").vote(long, False)  # whose published judge cuts nothing
    assert len(candidates(server.requests[0])[1].strip()) <= MAX_CHARACTERS
    assert "cut" not in whole.details and len(str(server.requests[-1])) > len(long.a.text.strip())
    assert ballot.details["cut"] == ["a"]
    assert "4 requests" in str(told[0])
    assert "2 texts are cut to 8,000" in str(told[0])
    assert 4000 < told[0].tokens < 8000  # two of 8,000 characters, and the prompt four times; 4 characters a token


def test_what_the_cache_has_is_not_asked_again_whatever_the_address(tmp_path):
    with judge_server("A") as server:
        first = judge_pairs(PAIRS, judge(server, cache=tmp_path / "cache"), tmp_path / "first.jsonl")
    with judge_server("B") as server:
        asking = judge(server, cache=tmp_path / "cache")
        estimates = []
        announce = lambda asked: estimates.append(asking.estimate(asked))  # noqa: E731
        again = judge_pairs(PAIRS, asking, tmp_path / "again.jsonl", announce=announce)
        assert server.requests == []
        assert str(estimates[0]).startswith("0 requests, about 0 tokens of input; 16 more are answered by the cache")
        other = HttpJudge(asking.client, "infstreams", Prompt("", "{a} {b}"))
        other.vote(PAIRS[0], False)  # another prompt is another request
        assert len(server.requests) == 1
    assert again == first
    assert (tmp_path / "first.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()


@pytest.mark.parametrize("damage", [b"", b'{"sent": {', b'{"sent": {}, "response": "<html>"}', b"\xff\xfe", b"[1]"])
def test_a_damaged_entry_of_the_cache_is_asked_for_again_and_mended(damage, tmp_path):
    with judge_server("A") as server:
        asking = judge(server, cache=tmp_path)
        asking.vote(PAIRS[0], False)
        [entry] = tmp_path.rglob("*.json")
        before = entry.read_bytes()
        entry.write_bytes(damage)
        assert asking.vote(PAIRS[0], False).vote == "A"
        assert len(server.requests) == 2
    assert entry.read_bytes() == before
    assert "response" in json.loads(before)


def test_a_prompt_of_the_users_own_takes_the_place_of_ours(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("[system]\nBe strict.\n[user]\nTrue: {reference}\nOne: {a}\nTwo: {b}\n")
    prompt = Prompt.read(path, FIELDS)
    tricky = PAIRS[0]._replace(a=Candidate("a {b} in braces"))
    with judge_server("B") as server:
        asking = judge(server, prompt=prompt)
        asking.vote(tricky, False)
        assert asking.settings()["prompt_sha256"] != judge(server).settings()["prompt_sha256"]
    assert server.requests[0]["messages"] == [
        {"role": "system", "content": "Be strict."},
        {"role": "user", "content": f"True: he scores\nOne: a {{b}} in braces\nTwo: {tricky.b.text}"},
    ]


@pytest.mark.parametrize("text", ["Which is better?", "[system]\n{a} {b}\n[user]\n{a}", ""])
def test_a_prompt_without_a_place_for_both_candidates_is_refused(text, tmp_path):
    (tmp_path / "prompt.txt").write_text(text)
    with pytest.raises(InputError, match=r"expected a text with \{a\} and \{b\}"):
        Prompt.read(tmp_path / "prompt.txt", FIELDS)
