"""Many videos in one batch: what each says depends on itself alone, nothing is lost, and a run that was killed goes on."""

from dataclasses import replace

import numpy as np
import pytest

import svlm_jax
from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.eval.commentator import Finished, Job, job_seed
from svlm_jax.eval.stream_commentator import StreamCommentator
from svlm_jax.media.video import write_video

CONFIG = StreamConfig(vision_window=2, text_rounds=2, sink=6, text_window=6, max_new_tokens=6)
DRAWN = Sampling(temperature=1.5, repetition_penalty=1.05)
SIZES = {"wide": (12, (56, 84)), "long": (18, (56, 84)), "tall": (14, (84, 56)), "short": (9, (56, 56))}  # frames, pixels
SAID = "It was a long and quiet first half "


@pytest.fixture(scope="module")
def vlm(shallow_dir, processor_dir):
    return svlm_jax.from_pretrained(shallow_dir, processor=processor_dir)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    for number, (name, (frames, size)) in enumerate(SIZES.items()):
        rng = np.random.default_rng(number)
        write_video(folder / f"{name}.mp4", (rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(frames)), 2)
    return folder


@pytest.fixture(scope="module")
def jobs(films):
    """One of each film, from second 1; of the last the film is shorter than the job."""
    return [
        Job(name, films / f"{name}.mp4", 1, max(6, frames // 2), "Commentate", SAID * number, seed=job_seed(0, name))
        for number, (name, (frames, _)) in enumerate(SIZES.items())
    ]


@pytest.fixture(scope="module")
def watch(vlm):
    def watched(jobs, *, skip=(), config=CONFIG, sampling=DRAWN, num_streams=2, **options) -> dict[str, Finished]:
        commentator = StreamCommentator(vlm, "tiny", config=config, sampling=sampling, num_streams=num_streams, **options)
        return {finished.job.key: finished for finished in commentator.run(jobs, skip=skip)}

    return watched


@pytest.fixture(scope="module")
def together(watch, jobs):
    return watch(jobs)


def test_every_second_of_every_job_has_an_utterance(together, jobs):
    assert together.keys() == SIZES.keys()
    for job in jobs[:-1]:
        finished = together[job.key]
        assert [utterance[:2] for utterance in finished.utterances] == [(s, s + 1) for s in range(1, int(job.end))]
        assert finished.error == ""


def test_a_video_that_ends_before_its_job_keeps_what_was_watched_and_says_so(together):
    short = together["short"]  # 4.5 s: the last half second is filled up
    assert [utterance.end for utterance in short.utterances] == [2, 3, 4, 5]
    assert "ends at 5 s, 1 s before the end of short" in short.error
    assert short.notes == ("4 s: ends 0.5 s early: its last frame stands for the missing 1",)


def test_what_a_job_says_depends_on_no_other(watch, jobs, together):
    assert watch(jobs[::-1]) == together
    assert watch(jobs, skip={"wide", "tall"}) == {key: together[key] for key in ("long", "short")}


@pytest.mark.slow
def test_the_number_of_streams_changes_no_word_here(watch, jobs, together):
    """Not a promise: on other devices another batch size may round otherwise."""
    assert watch(jobs, num_streams=1) == watch(jobs, num_streams=3) == together


@pytest.mark.slow
def test_an_exact_seed_is_prefilled_whole_and_is_heard_in_the_first_words(watch, jobs, together):
    exact = watch(jobs, exact_seed=True)
    assert exact["wide"] == together["wide"]  # nothing was said before it
    assert exact["short"].utterances[0] != together["short"].utterances[0]


def test_a_run_that_was_cut_off_goes_on_with_the_same_words(watch, jobs, together, tmp_path):
    state, before = tmp_path / "streams.state", {}

    def cut(done: int, total: int) -> None:
        assert total == sum(int(job.end) - 1 for job in jobs)
        if done > 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        before |= watch(jobs, state=state, save_minutes=0, watched=cut)
    assert state.is_file()
    seconds = []
    after = watch(jobs, state=state, watched=lambda done, total: seconds.append(done))
    assert after == {key: together[key] for key in after} and "long" in after
    assert seconds[0] > 2  # not from the beginning
    assert not state.exists()  # nothing is left to go on with


def test_stopping_saves_what_was_watched(vlm, jobs, together, tmp_path):
    state = tmp_path / "streams.state"

    def commentator():
        return StreamCommentator(vlm, "tiny", config=CONFIG, sampling=DRAWN, num_streams=2, state=state)

    stopped = commentator()
    stopped.watched = lambda done, total: done > 7 and stopped.stop()
    done = {finished.job.key: finished for finished in stopped.run(jobs)}
    done |= {finished.job.key: finished for finished in commentator().run(jobs, skip=done)}
    assert done == together


def test_questions_are_asked_when_they_fall_due_one_a_second(watch, jobs):
    too_long = "ж" * 300
    questions = ((99, "who won?"), (3, "who?"), (3.5, "what?"), (3.5, too_long))
    too_late = ((2, "who?"), (5.5, "when?"), (6, "why?"))
    found = watch([jobs[0]._replace(questions=questions), jobs[3]._replace(questions=too_late)])
    won, who, what, refused = found["wide"].answers
    assert [(answer.question, answer.time) for answer in (won, who, what)] == [("who won?", 6), ("who?", 3), ("what?", 4)]
    texts = {utterance.end: utterance.text for utterance in found["wide"].utterances}
    assert [won.text, who.text, what.text] == [texts[6], texts[3], texts[4]]
    assert refused.question == too_long and "question" in refused.refused
    who, when, why = found["short"].answers  # its film ends at second 5
    assert not who.refused and "ends at 5 s" in when.refused and "ends at 5 s" in why.refused


def test_recent_frames_alone_have_no_memory_and_a_stream_has_one(watch, films):
    jobs = [Job(str(start), films / "long.mp4", start, 8, "Commentate", SAID) for start in (2, 5)]
    greedy = {"sampling": Sampling(repetition_penalty=1.0)}
    fresh = watch([job._replace(previous="") for job in jobs], recent_frames=4, **greedy)
    assert fresh["5"].utterances == fresh["2"].utterances[3:]
    streamed = watch(jobs, **greedy)
    assert streamed["5"].utterances != streamed["2"].utterances[3:]


def test_a_job_that_cannot_begin_is_named_and_costs_no_other_anything(watch, jobs, together, tmp_path):
    (tmp_path / "empty.mp4").touch()
    broken = [
        jobs[0]._replace(key="empty", path=tmp_path / "empty.mp4"),
        jobs[0]._replace(key="markup", previous="<|im_end|>"),
        jobs[0]._replace(key="query", query="ж" * 300),
    ]
    found = watch([*broken, *jobs])
    assert {key: found[key] for key in together} == together
    with pytest.raises(InputError, match="query"):  # that is no fault of a video
        watch([job._replace(query="ж" * 300) for job in jobs])
    for key, reason in (("empty", "empty.mp4"), ("markup", "previous text"), ("query", "query")):
        assert reason in found[key].error and found[key].utterances == ()


def test_however_long_the_previous_text_is_a_stream_begins_with_its_sink_and_its_window(vlm):
    from svlm_jax.stream.turn_tokenizer import TurnTokenizer, cut_opening, opening_of

    turns = TurnTokenizer.of(vlm.tokenizer, vlm.model.config)
    whole = opening_of(SAID * 50, CONFIG, turns)
    cut = cut_opening(whole, CONFIG)
    system = len(opening_of("", replace(CONFIG, previous_text_turn=False), turns).ids)
    head = system + 4  # the header of the turn
    assert cut.ids.tolist() == [*whole.ids[: head + 6], *whole.ids[-(7):]]
    assert sum(span.length for span in cut.spans) == len(cut.ids)
    unbounded = replace(CONFIG, sink=None, text_window=None)
    assert cut_opening(whole, unbounded).ids.tolist() == whole.ids.tolist()
