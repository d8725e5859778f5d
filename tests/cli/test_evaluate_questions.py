"""`svlm evaluate ovo` and `svlm evaluate streamingbench`, as a user runs them, with answers that are known."""

import json
import re
import sys

import numpy as np
import pytest

from svlm_jax.cli.evaluate import ovo, question_flags, streamingbench
from svlm_jax.errors import InputError
from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.commentator import Answer, Finished
from svlm_jax.eval.result import read_result
from svlm_jax.media.video import write_video
from tests.eval.test_ovo import ITEMS as OVO_ITEMS
from tests.eval.test_proactive import RECORD as PROACTIVE
from tests.eval.test_streamingbench import entry, question
from tests.support.judge_server import MODEL, failure, judge_server, prompt_text


class Oracle:
    """Says the letter that follows "=" in a question, and keeps all that it is asked."""

    num_streams, stopped = 1, False

    def __init__(self):
        self.asked = []

    def settings(self):
        return {"model": "oracle"}

    def answer(self, request):
        self.asked.append((request.text, len(request.frames.pixels)))
        if "moment to say" in request.text:
            return "yes" if len(request.frames.pixels) >= 6 else "no"
        found = re.findall(r"=(\w)", request.text)
        return found[-1] if found else "3"

    def choose(self, request, options, *, ended=False):
        return len(options) - 1, [0.0] * len(options)

    def run(self, jobs, *, skip=()):
        for job in jobs:
            ((second, text),) = job.questions
            said = tuple(Utterance(start, start + 1.0, f"{start:g}") for start in np.arange(job.start, job.end))
            yield Finished(job, said, (Answer(text, second, self.answer_to(text)),))

    def answer_to(self, text):
        return re.findall(r"=(\w)", text)[-1] if "=" in text else "3"


@pytest.fixture
def oracle(monkeypatch):
    model = Oracle()
    monkeypatch.setattr(question_flags, "_answerer", lambda args: model)
    monkeypatch.setattr(question_flags, "make_commentator", lambda args, **options: model)
    return model


@pytest.fixture
def call(monkeypatch, tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("v1", "v2"):
        frames = (np.full((16, 16, 3), 2 * frame, np.uint8) for frame in range(60))
        write_video(tmp_path / "videos" / f"{name}.mp4", frames, 2)

    def run(command, *args):
        monkeypatch.setattr(sys, "argv", [f"svlm evaluate {command.__name__.rpartition('.')[2]}", *map(str, args)])
        command.main()

    return run


def write(path, value):
    path.write_text(json.dumps(value))
    return path


def test_ovo_bench_from_items_to_a_result(tmp_path, oracle, call, capsys):
    items = [{**item, "video": "videos/v1.mp4"} for item in OVO_ITEMS]
    for item in items:
        if "gt" in item:
            item["question"] = "What is it? =B"
    path, out = write(tmp_path / "items.json", items), tmp_path / "run"
    flags = ("--items", path, "--videos", tmp_path, "--frames", 8)
    call(ovo, "generate", *flags, "--out", out)
    assert "13 of 13 questions answered" in capsys.readouterr().out
    run = json.loads((out / "run.json").read_text())
    assert (run["benchmark"], run["mode"], run["frames"], run["model"]) == ("ovo", "prefix", 8, "oracle")
    call(ovo, "generate", *flags, "--out", out)  # nothing is asked twice
    assert len(oracle.asked) == 13
    with pytest.raises(InputError, match="run frames"):
        call(ovo, "generate", *flags[:-1], 4, "--out", out)

    call(ovo, "score", "--items", path, "--answers", out, "--out", out / "result.json")
    result = read_result(out / "result.json")
    values = {metric.name: metric.value for metric in result.metrics}
    # B is right of two of three, of none of one, of one of two; "3" is no count, neither yes nor no.
    assert (values["EPM"], values["HLD"], values["OCR"], values["REC"], values["CRR"]) == (2 / 3, 0, 1 / 2, 0, 0)
    assert result.label == "oracle, prefix 8"
    assert "4 questions not parsed, which is wrong: 7_0, 7_1, 8_0, 8_1\n" in capsys.readouterr().out
    call(ovo, "score", "--items", path, "--answers", out / "published", "--out", tmp_path / "published.json")
    assert read_result(tmp_path / "published.json").metrics == result.metrics


def test_ovo_bench_online_and_by_options(tmp_path, oracle, call):
    items = [{**item, "video": "videos/v1.mp4"} for item in OVO_ITEMS]
    flags = ("--items", write(tmp_path / "items.json", items), "--videos", tmp_path)
    call(ovo, "generate", *flags, "--online", "--window", 5, "--out", tmp_path / "online", "--tasks", "EPM", "--query", "say")
    answers = (tmp_path / "online/answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["asked"] for line in answers] == [11.0, 11.0, 12.0]
    call(ovo, "generate", *flags, "--score", "options", "--out", tmp_path / "options")
    answers = [json.loads(line) for line in (tmp_path / "options/answers.jsonl").read_text().splitlines()]
    assert {answer["task"]: answer["response"] for answer in answers} == {
        "EPM": "D", "HLD": "D", "OCR": "D", "REC": "10", "SSR": "No", "CRR": "No",
    }  # fmt: skip
    for wrong in (("--mode", "recent"), ("--frames", 8), ("--score", "options"), ("--captioner-url", "http://x/v1")):
        with pytest.raises(InputError, match="with it, expected one of the two"):
            call(ovo, "generate", *flags, "--online", *wrong, "--out", tmp_path / "new")


@pytest.mark.parametrize(
    "flags, name",
    [
        (("--vision-window", 8), "--vision-window"),
        (("--silence-threshold", 0.5), "--silence-threshold"),
        (("--captioner-url", "http://x/v1", "--captioner-model", "m", "--temperature", 1), "--temperature"),
        (("--videos", "nowhere"), "--videos"),
    ],
)
def test_a_flag_without_effect_is_refused_before_anything_is_loaded(tmp_path, call, flags, name):
    path = write(tmp_path / "items.json", OVO_ITEMS)
    with pytest.raises(InputError, match=name):
        call(ovo, "generate", "--items", path, "--videos", tmp_path, "--out", tmp_path / "run", *flags)


def test_answers_are_scored_with_the_items_that_were_asked(tmp_path, oracle, call):
    items = [{**item, "video": "videos/v1.mp4"} for item in OVO_ITEMS]
    path = write(tmp_path / "items.json", items)
    call(ovo, "generate", "--items", path, "--videos", tmp_path, "--tasks", "EPM", "--out", tmp_path / "run")
    other = write(tmp_path / "other.json", items[:2])
    with pytest.raises(InputError, match="another file than the run's"):
        call(ovo, "score", "--items", other, "--answers", tmp_path / "run", "--out", tmp_path / "r.json")
    with pytest.raises(InputError, match="a run of ovo"):
        questions = write(tmp_path / "q.json", [entry(question())])
        call(streamingbench, "score", "--items", questions, "--answers", tmp_path / "run", "--out", tmp_path / "r.json")


def test_sequential_questions_with_the_right_answers_or_the_models_own(tmp_path, oracle, call, capsys):
    one = question("00:00:10", "A", streamingbench.streamingbench.SEQUENTIAL, question="First =B?")
    two = question("00:00:20", "C", streamingbench.streamingbench.SEQUENTIAL, question="Second =C?")
    path = write(tmp_path / "questions_sqa.json", [[entry(one), entry(two)]])
    flags = ("--items", path, "--videos", tmp_path)
    for history, answer in (("truth", "A"), ("own", "B")):
        out = tmp_path / history
        call(streamingbench, "generate", *flags, "--history", history, "--context", 5, "--out", out)
        text, frames = oracle.asked[-1]
        assert f"Answer: {answer}\n" in text and frames == 10
        call(streamingbench, "score", "--items", path, "--answers", out, "--out", out / "result.json")
        details = json.loads((out / "result.json").read_text())
        assert (details["context_seconds"], details["run"]["history"]) == (5, history)
        assert details["total"]["accuracy"] == 1 / 2
    published = tmp_path / "own/published/answers.json"
    call(streamingbench, "score", "--items", path, "--answers", published, "--model", "oracle", "--out", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["context_seconds"] == "unknown"


def test_a_killed_run_knows_the_models_own_answers(tmp_path, oracle, call):
    one = question("00:00:10", "A", streamingbench.streamingbench.SEQUENTIAL, question="First?")
    two = question("00:00:20", "C", streamingbench.streamingbench.SEQUENTIAL, question="Second =C?")
    path = write(tmp_path / "questions_sqa.json", [[entry(one), entry(two)]])
    flags = ("--items", path, "--videos", tmp_path, "--history", "own", "--out", tmp_path / "run")
    call(streamingbench, "generate", *flags)
    (tmp_path / "run/answers.jsonl").replace(tmp_path / "run/answers.partial.jsonl")
    kept = (tmp_path / "run/answers.partial.jsonl").read_text().splitlines(keepends=True)[0].replace('"3"', '"D"')
    (tmp_path / "run/answers.partial.jsonl").write_text(kept)
    call(streamingbench, "generate", *flags)
    assert "Answer: D\n" in oracle.asked[-1][0]


def test_proactive_questions_polled_and_native(tmp_path, oracle, call):
    path = write(tmp_path / "questions_proactive.json", [{"video_path": "./videos/v1.mp4", "questions": [PROACTIVE]}])
    flags = ("--items", path, "--videos", tmp_path)
    call(streamingbench, "generate", *flags, "--out", tmp_path / "polled")
    call(streamingbench, "generate", *flags, "--mode", "native", "--out", tmp_path / "native")
    for name, said, correct in (("polled", 23.0, True), ("native", None, False)):
        out = tmp_path / name
        call(streamingbench, "score", "--items", path, "--answers", out, "--out", out / "result.json")
        details = json.loads((out / "result.json").read_text())
        assert (details["protocol"], details["never_said"]) == (name, [] if said else ["0.0"])
        assert {metric.name: metric.value for metric in read_result(out / "result.json").metrics}["answer_correct"] == correct
    # Polled at 21, 22 and 23 s; at the third poll there are six frames, and the oracle says yes, and then "3".
    assert [text for text, _ in oracle.asked if "moment to say" not in text] == [oracle.asked[-1][0]]
    for wrong in (("--online",), ("--history", "own"), ("--score", "options"), ("--context", 60)):
        with pytest.raises(InputError, match=f"{wrong[0]}: got proactive questions with it"):
            call(streamingbench, "generate", *flags, *wrong, "--out", tmp_path / "new")


def test_flags_of_other_questions_are_refused(tmp_path, oracle, call, capsys):
    path = write(tmp_path / "questions_omni.json", [entry(question("00:00:10", task="Emotion Recognition"))])
    flags = ("--items", path, "--videos", tmp_path, "--out", tmp_path / "run")
    for wrong in (("--mode", "native"), ("--history", "own")):
        with pytest.raises(InputError, match=wrong[0]):
            call(streamingbench, "generate", *flags, *wrong)
    call(streamingbench, "generate", *flags)
    assert "the model hears none" in capsys.readouterr().out


def test_a_model_behind_a_server_answers_and_what_it_did_not_answer_is_asked_again(tmp_path, call, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    items = [{**item, "video": "videos/v1.mp4"} for item in OVO_ITEMS if item["task"] == "EPM"]
    for item, name in zip(items, ("one", "two", "three"), strict=True):
        item["question"] = f"Number {name}?"
    refuses = [True]

    def respond(body, _):
        is_refused = refuses[0] and "Number two?" in prompt_text(body)
        return failure(400, "bad request") if is_refused else "B"

    with judge_server(respond) as server:
        flags = (
            "--items",
            write(tmp_path / "items.json", items),
            "--videos",
            tmp_path,
            "--frames",
            3,
            "--out",
            tmp_path / "run",
        )
        flags += ("--captioner-url", server.url, "--captioner-model", MODEL)
        with pytest.raises(InputError, match="question 1 "):
            call(ovo, "generate", *flags)
        refuses[0] = False
        call(ovo, "generate", *flags)
        asked = [prompt_text(body) for body in server.requests]
    assert [sum(f"Number {name}?" in text for text in asked) for name in ("one", "three")] == [1, 1]
    answers = [json.loads(line) for line in (tmp_path / "run/answers.jsonl").read_text().splitlines()]
    assert [(answer["key"], answer["response"]) for answer in answers] == [("0", "B"), ("1", "B"), ("2", "B")]
