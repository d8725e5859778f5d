"""Claims about the chat model for lmms-eval, on a stand-in for its interface: what a task asks for reaches the model, every
reply comes back to the request that it is of, and what is wrong is said with the document's name.

`test_lmms_installed.py` has the same with lmms-eval itself, slowly.
"""

import importlib
import sys
import tomllib
import types
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.eval import lmms
from svlm_jax.eval.lmms_settings import ModelArgs, reply_settings
from svlm_jax.families import config_json
from svlm_jax.media.processor import Processor
from svlm_jax.media.video import write_video
from svlm_jax.pretrained import Reply
from tests.support import ROOT

STUBS = (
    "lmms_eval",
    "lmms_eval.api",
    "lmms_eval.api.model",
    "lmms_eval.api.instance",
    "lmms_eval.models",
    "lmms_eval.models.registry_v2",
)


class Manifest(NamedTuple):
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


class TokenCounts(NamedTuple):
    input_tokens: int | None = None
    output_tokens: int | None = None


class GenerationResult(NamedTuple):
    text: str
    token_counts: TokenCounts | None = None


class Hook:
    def __init__(self):
        self.calls = []

    def add_partial(self, kind, key, reply):
        self.calls.append((kind, key, reply))


class Lmms:
    """What `lmms_eval.api.model.lmms` gives its subclasses."""

    is_simple = True

    def __init__(self):
        self.rank, self.world_size, self.cache_hook, self.task_dict = 0, 1, Hook(), {}


class Request(NamedTuple):
    args: tuple


@pytest.fixture(scope="module")
def chat_model():
    """The class, imported as lmms-eval imports it: by its path, with lmms-eval there."""
    with pytest.MonkeyPatch.context() as patch:
        for name in STUBS:
            patch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules["lmms_eval.api.model"].lmms = Lmms
        sys.modules["lmms_eval.api.instance"].GenerationResult = GenerationResult
        sys.modules["lmms_eval.api.instance"].TokenCounts = TokenCounts
        sys.modules["lmms_eval.models.registry_v2"].ModelManifest = Manifest
        module, name = lmms.manifest().chat_class_path.rsplit(".", 1)
        patch.delitem(sys.modules, module, raising=False)
        yield getattr(importlib.import_module(module), name)
        sys.modules.pop(module, None)


@pytest.fixture(scope="module")
def processor(shallow_dir, processor_dir):
    return Processor.from_directory(processor_dir, config_json.read(shallow_dir))


class FakeVlm:
    """Replies with the last words of the prompt in capitals; keeps what it was asked."""

    generation = Sampling(repetition_penalty=1.05)

    def __init__(self, processor, reply=None):
        self.processor, self.tokenizer, self.model, self.batches = processor, processor.tokenizer, processor, []
        self.reply = reply or (lambda text: text.rsplit("user\n", 1)[-1].split("<|im_end|>")[0].upper())

    def replies(self, prompts, **options):
        texts = [self.tokenizer.decode(prompt.ids.tolist(), skip_special_tokens=False) for prompt in prompts]
        self.batches.append((texts, prompts, options))
        return [Reply(self.reply(text), 7) for text in texts]


@pytest.fixture
def vlm(processor):
    return FakeVlm(processor)


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def ask(model, messages: list, gen_kwargs: dict | None = None, task: str = "quiz") -> list[Request]:
    """Requests for documents whose messages are given, or made by a function."""
    model.task_dict[task] = {"test": messages}
    to_messages = lambda doc, **told: doc(**told) if callable(doc) else doc  # noqa: E731
    return [
        Request((f"context {number}", to_messages, gen_kwargs or {"max_new_tokens": 4}, number, task, "test"))
        for number in range(len(messages))
    ]


def test_lmms_eval_finds_the_class_by_the_entry_point(chat_model):
    """Else `--model svlm_jax` is "not found": lmms-eval only warns about what goes wrong here."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    assert points == {lmms.MODEL_ID: f"{lmms.__name__}:{lmms.manifest.__name__}"}
    assert issubclass(chat_model, Lmms) and chat_model.is_simple is False


def test_replies_come_back_in_the_order_of_the_requests_whatever_the_batches(chat_model, vlm):
    model = chat_model(pretrained="x", vlm=vlm, batch_size="2")
    short, long = {"max_new_tokens": 4, "until": ["\n\n"]}, {"max_new_tokens": 8}
    words = ["one", "two", "three", "four", "five"]
    requests = ask(model, [user(text(word)) for word in words])
    for number, settings in enumerate((short, long, short, long, short)):
        requests[number] = Request((*requests[number].args[:2], settings, *requests[number].args[3:]))
    results = model.generate_until(requests)
    assert [result.text for result in results] == [word.upper() for word in words]
    assert [len(texts) for texts, _, _ in vlm.batches] == [2, 1, 2]  # of equal settings only
    assert [options["max_new_tokens"] for _, _, options in vlm.batches] == [4, 4, 8]
    assert results[0].token_counts == TokenCounts(len(vlm.batches[0][1][0].ids), 7)
    assert model.cache_hook.calls[0] == ("generate_until", ("context 0", short), "ONE")


def test_random_numbers_of_a_request_do_not_depend_on_the_batch_it_is_in(chat_model, processor):
    seeds = []
    for size in (1, 3):
        vlm = FakeVlm(processor)
        model = chat_model(pretrained="x", vlm=vlm, batch_size=size)
        model.generate_until(ask(model, [user(text("the same"))] * 3))
        seeds.append([seed for _, _, options in vlm.batches for seed in options["seed"]])
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == 3  # and repeats of a question get different draws


def test_turns_and_media_reach_the_model_in_their_order(chat_model, vlm, tmp_path):
    clip = write_video_of(tmp_path, seconds=3)
    picture = Image.new("RGB", (56, 56), "red")
    messages = [
        {"role": "system", "content": [text("Be short.")]},
        *user({"type": "image", "url": picture}, text("first"), {"type": "video", "url": clip}, text("then")),
        {"role": "assistant", "content": [text("Yes.")]},
        *user(text("why?")),
    ]
    model = chat_model(pretrained="x", vlm=vlm)
    model.generate_until(ask(model, [messages]))
    (seen, prompts, _) = vlm.batches[0]
    order = ["system\nBe short.", "<|image_pad|>", "first", "<|video_pad|>", "then", "assistant\nYes.", "user\nwhy?"]
    places = [seen[0].index(each) for each in order]
    assert places == sorted(places) and seen[0].endswith("<|im_start|>assistant\n")
    assert [clip.video for clip in prompts[0].clips] == [False, True]
    assert prompts[0].clips[1].grid[0] == 3  # 6 frames at 2 a second


@pytest.mark.parametrize(
    ("part", "args", "times"),
    [
        ({}, {}, [0.25, 1.25, 2.25, 3.25]),  # all of it, 2 a second, two frames a patch
        ({}, {"fps": 1}, [0.5, 2.5]),
        ({}, {"max_frames": 4}, [3.95 / 6, 3.95 * 5 / 6]),  # thinned evenly from the first to the newest frame, at 3.95 s
        ({}, {"mode": "recent", "max_frames": 2}, [3.25]),
        ({"start_time": 1.0, "end_time": 3.0}, {}, [1.25, 2.25]),
        ({"url": {"video_start": 1.0, "video_end": 3.0}}, {}, [1.25, 2.25]),
        ({"url": {"video_end": 3.0}}, {"mode": "recent", "max_frames": 2}, [2.25]),
    ],
    ids=["all", "fps", "thinned", "recent", "times beside", "times within", "recent before an end"],
)
def test_the_frames_of_a_video_are_those_of_its_seconds(chat_model, vlm, tmp_path, part, args, times):
    path = write_video_of(tmp_path, seconds=4)
    url = part.get("url", path)
    part = {"type": "video", **part, "url": {"type": "video", "path": path, **url} if isinstance(url, dict) else url}
    model = chat_model(pretrained="x", vlm=vlm, **args)
    model.generate_until(ask(model, [user(part, text("what?"))]))
    assert list(vlm.batches[0][1][0].clips[0].times) == pytest.approx(times)


def write_video_of(folder, seconds: int) -> str:
    write_video(folder / "clip.mp4", np.zeros((seconds * 4, 56, 56, 3), np.uint8), fps=4)
    return str(folder / "clip.mp4")


def rounds_of(count: int, words: str):
    """A document of so many rounds, as lmms-eval makes them of one: the messages, then four values a round."""

    def messages(round_idx=None, previous_output=None, previous_round_info=None):
        if round_idx is None:
            return user(text(f"{words} 0"))
        assert len(previous_output) == round_idx and previous_round_info == (None if round_idx == 1 else round_idx - 1)
        if round_idx == count:
            return None, True, previous_output, None
        return user(text(f"{words} {round_idx} after {previous_output[-1]}")), False, previous_output, round_idx

    return messages


def test_rounds_go_on_until_the_task_says_so_each_document_at_its_own_length(chat_model, vlm):
    model = chat_model(pretrained="x", vlm=vlm, batch_size=2)
    results = model.generate_until_multi_round(ask(model, [rounds_of(1, "a"), rounds_of(3, "b"), rounds_of(2, "c")]))
    assert results == [["A 0"], ["B 0", "B 1 AFTER B 0", "B 2 AFTER B 1 AFTER B 0"], ["C 0", "C 1 AFTER C 0"]]
    assert [len(texts) for texts, _, _ in vlm.batches] == [2, 2, 2]  # room is filled from the next document
    assert {call[2][0] for call in model.cache_hook.calls} == {"A 0", "B 0", "C 0"}


def test_a_task_without_rounds_is_asked_once(chat_model, vlm):
    model = chat_model(pretrained="x", vlm=vlm)
    assert model.generate_until_multi_round(ask(model, [user(text("hello"))])) == [["HELLO"]]


@pytest.mark.parametrize(
    ("reply", "until", "want"),
    [
        ("A\n\nBecause", ["\n\n"], "A"),
        ("one. two; three", [";", "."], "one"),
        ("B</s>", "</s>", "B"),
        ("A. yes", ["", "zzz"], "A. yes"),
        ("A\n\nBecause", None, "A\n\nBecause"),
        ("", ["\n\n"], ""),
    ],
)
def test_a_reply_ends_at_the_first_stop_string(reply, until, want):
    settings = reply_settings({"until": until}, ModelArgs("x"), Sampling(), set())
    assert settings.cut(reply) == want


def test_the_blank_line_that_lmms_eval_adds_can_be_left_out_as_its_own_models_do():
    settings = reply_settings({"until": ["\n\n", "END"]}, ModelArgs("x", blank_line_stops=False), Sampling(), set())
    assert settings.cut("A\n\nBecause END of it") == "A\n\nBecause"


@pytest.mark.parametrize(
    ("given", "temperature", "top_p", "penalty"),
    [
        ({}, 0.0, 1.0, 1.05),  # greedy by default, with the penalty of the model
        ({"temperature": 0, "top_p": 0, "num_beams": 1, "do_sample": False}, 0.0, 1.0, 1.05),  # as many tasks have it
        ({"temperature": 0.7, "top_p": 0.9}, 0.7, 0.9, 1.05),
        ({"temperature": 0.7, "do_sample": False}, 0.0, 1.0, 1.05),
        ({"do_sample": True}, 1.0, 1.0, 1.05),
        ({"do_sample": True, "temperature": 0}, 0.0, 1.0, 1.05),
        ({"temperature": None, "repetition_penalty": 1.2}, 0.0, 1.0, 1.2),
    ],
)
def test_sampling_is_what_the_task_asks_for(given, temperature, top_p, penalty):
    sampling = reply_settings(given, ModelArgs("x"), Sampling(repetition_penalty=1.05), set()).sampling
    assert (sampling.temperature, sampling.top_p, sampling.repetition_penalty) == (temperature, top_p, penalty)


def test_what_is_not_supported_is_told_once(chat_model, vlm):
    model = chat_model(pretrained="x", vlm=vlm)
    with pytest.warns(UserWarning, match="num_beams=5 is not supported") as told:
        model.generate_until(ask(model, [user(text("a"))] * 3, {"num_beams": 5}))
    assert len(told) == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "model_args: got no pretrained"),
        ({"pretrained": "x", "framerate": 2}, "model_args framerate: got no such name"),
        ({"pretrained": "x", "fps": "two"}, "model_args fps: got 'two', expected a number"),
        ({"pretrained": "x", "max_frames": 2.5}, "model_args max_frames: got 2.5, expected a whole number"),
        ({"pretrained": "x", "max_frames": 0}, "model_args max_frames: got 0, expected 1 or more"),
        ({"pretrained": "x", "mode": "all"}, "model_args mode: got all, expected one of prefix, recent"),
        ({"pretrained": "x", "batch_size": "auto"}, "--batch_size: got 'auto', expected a whole number"),
    ],
)
def test_a_wrong_argument_is_refused_by_name_before_the_model_loads(chat_model, given, words):
    with pytest.raises(InputError, match=words):
        chat_model(**given)


def test_what_lmms_eval_adds_itself_is_no_argument_of_the_model(chat_model, vlm):
    model = chat_model(pretrained="x", vlm=vlm, batch_size="4", max_batch_size=8, device="cuda:0")
    assert (model.batch_size, model.rank, model.world_size) == (4, 0, 1)


def missing(**_):
    raise AssertionError("Video chunk path does not exists: 1.mp4")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (user({"type": "video", "url": "no/such.mp4"}, text("?")), "no/such.mp4"),
        (user({"type": "image", "url": "no/such.png"}, text("?")), "no/such.png"),
        (missing, "AssertionError (Video chunk path does not exists: 1.mp4)"),
        (user({"type": "audio", "url": "a.wav"}, text("?")), "type 'audio', expected text, image or video"),
        (user(text("see <|video_pad|>")), "special token <|video_pad|>"),
        (user({"type": "video", "url": {"path": "a.mp4", "video_end": "soon"}}), "video_end of a video: got 'soon'"),
        ([{"role": "narrator", "content": []}], "role of a message: got 'narrator'"),
        ([], "messages: got []"),
    ],
    ids=["no video", "no picture", "task's own error", "sound", "special token", "times", "role", "nothing"],
)
@pytest.mark.parametrize("kind", ["generate_until", "generate_until_multi_round"])
def test_a_document_that_cannot_be_asked_about_is_named_and_no_answer_is_made_up(chat_model, vlm, kind, bad, words):
    model = chat_model(pretrained="x", vlm=vlm)
    with pytest.raises(InputError) as error:
        getattr(model, kind)(ask(model, [user(text("good")), bad]))
    assert str(error.value).startswith("task quiz document 1") and words in str(error.value)


def test_loglikelihood_says_what_to_choose_instead(chat_model, vlm):
    with pytest.raises(NotImplementedError, match="generate_until"):
        chat_model(pretrained="x", vlm=vlm).loglikelihood([])
