"""How much of a clip is live commentary, by rules and by a model. If this fails, annealing learns from talk of last season."""

import json

import pytest

from svlm_jax.curate.annealing.live_share import RuleJudge
from svlm_jax.curate.annealing.llm_live_share import LlmJudge, parse_answer
from svlm_jax.curate.outcome import NotDone
from svlm_jax.curate.patterns import Patterns
from svlm_jax.remote.chat_client import ChatClient
from tests.support.judge_server import BROKEN, KEY, MODEL, REFUSAL, judge_server, prompt_text

LIVE = (
    "Here's Costa, down the left.",
    "He cuts inside and shoots, just wide!",
    "Saved by Reds!",
    "Kick-off, Blues.",
    "Reds pass.",
    "Messi.",
    "What a goal!",
    "And it's a corner to the Blues.",
    "GOAL for Reds! Reds 2-1 Blues.",
)
BACKGROUND = (
    "He signed a new contract last summer after two years on loan.",
    "They have not lost here since 2011, which is a club record.",
    "The manager said before the game that he expects more from his captain.",
    "He has scored seven goals in all competitions this season.",
    "When they met in the cup last season, the away side won.",
    "It would be fair to have some opinion about how this club is owned.",
)


@pytest.mark.parametrize("sentence", LIVE)
def test_calls_of_the_play_are_live(sentence):
    assert RuleJudge().is_live(sentence)


@pytest.mark.parametrize("sentence", BACKGROUND)
def test_background_is_not(sentence):
    assert not RuleJudge().is_live(sentence)


def test_the_share_is_of_words():
    live, background = "Saved by Reds!", "He signed a new contract last year"  # 3 and 7 words
    assert RuleJudge().judge("", [live, background]).share == 0.3
    assert RuleJudge().judge("", [live]).share == 1.0
    assert RuleJudge().judge("", []).share == 0.0


def test_cues_of_a_users_own(tmp_path):
    path = tmp_path / "cues.toml"
    path.write_text("live = ['dunk']\nbackground = ['nba']\n")
    judge = RuleJudge(Patterns.read(path, "--cues", ("live", "background")))
    assert judge.is_live("And that is a huge dunk by him") and not judge.is_live("The shot of the year by him goes wide")
    assert judge.settings != RuleJudge().settings


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ('{"share": 0.85, "reason": "calls"}', 0.85),
        ('Sure!\n```json\n{"share": "85%", "reason": "calls"}\n```', 0.85),
        ('{"share": 1}', 1.0),
        ('{"share": 0, "reason": null}', 0.0),
        ('{"share": 85}', None),
        ('{"share": -0.1}', None),
        ('{"share": true}', None),
        ('{"share": NaN}', None),
        ('{"share": "most of it"}', None),
        ('{"reason": "calls"}', None),
        ("0.9", None),
        ("", None),
        ('{"share": 1' + "0" * 5000 + "}", None),
        ("{" * 5000, None),
    ],
)
def test_an_answer_is_a_share_or_none(answer, share):
    found = parse_answer(answer)
    assert found.share == share and (share is not None or found.reason)


CLIENTS: list[ChatClient] = []


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No proxy before loopback, no key of the user; connections end with the test."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield
    while CLIENTS:
        CLIENTS.pop()._connection.openai.close()


def judge(server, tmp_path, **options) -> LlmJudge:
    CLIENTS.append(ChatClient(server.url, MODEL, cache=tmp_path / "cache", flag="--judge", **options))
    return LlmJudge(CLIENTS[-1])


def test_a_model_is_asked_once(tmp_path):
    with judge_server('{"share": 0.9, "reason": "an attack"}') as server:
        for _ in range(2):
            assert judge(server, tmp_path).judge("Reds - Blues", ["Saved!", "Corner."]) == (0.9, "an attack")
    (request,) = server.requests
    assert request["temperature"] == 0 and request["response_format"]["json_schema"]["name"] == "live_share"
    assert "Broadcast: Reds - Blues" in prompt_text(request) and "<passage>\nSaved!\nCorner.\n</passage>" in prompt_text(
        request
    )


def test_an_answer_that_is_none_is_asked_for_once_more(tmp_path):
    def respond(body, _):
        return json.dumps({"share": 0.7, "reason": "so"}) if "could not be used" in prompt_text(body) else "Most of it."

    with judge_server(respond) as server:
        assert judge(server, tmp_path).judge("", ["Saved!"]).share == 0.7
    assert len(server.requests) == 2


@pytest.mark.parametrize("answer", ["Most of it.", "", REFUSAL])
def test_after_two_such_answers_there_is_no_share(tmp_path, answer):
    with judge_server(answer) as server:
        assert judge(server, tmp_path).judge("", ["Saved!"]).share is None
    assert len(server.requests) == 2


def test_a_server_that_does_not_answer_leaves_it_for_later(tmp_path):
    with judge_server(BROKEN) as server, pytest.raises(NotDone, match="--judge-url"):
        judge(server, tmp_path, retries=0).judge("", ["Saved!"])
