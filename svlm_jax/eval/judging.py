"""Two candidates and a reference: a judge says which is better, in both orders, and nothing is judged twice or lost.

Owns pairs, ballots, the loop over them and the file of votes, which is both the record of a run and what a killed run goes on
with. A judge over HTTP is in `eval.http_judge`, one that compares with the truth in `eval.exact_judge`. Units: seconds of the
video.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

from svlm_jax import json_lines
from svlm_jax.errors import InputError, shortened
from svlm_jax.eval.commentary import Utterance
from svlm_jax.files import local_path
from svlm_jax.remote.workers import Workers

Vote = Literal["A", "B", "tie", "invalid"]
MAX_ANSWER = 500  # characters of a judge's answer that are stored beside its vote; a cache of a judge over HTTP has all
MAX_FAILURES = 20  # in a row, or two a thread: then the server is down, and the rest is not asked
NOT_ASKED = "not asked, because none of the ones before was answered"
ORDERS = ("AB", "BA")


class Candidate(NamedTuple):
    """A commentary on a segment. text: its words, as a judge reads them. utterances: the same with their times. missing: the
    model was not run on this segment, which is not the same as silence."""

    text: str
    utterances: tuple[Utterance, ...] = ()
    missing: bool = False


class Pair(NamedTuple):
    """Two candidates for one segment of a video. key: names it for ever, in files and caches."""

    key: str
    video: str
    start: float
    end: float
    reference: str
    a: Candidate
    b: Candidate
    title: str = ""


class Ballot(NamedTuple):
    """One vote, of A or B as the pair has them, in whichever order the judge read them. answer: what it wrote. details: JSON of
    what else is known of this one answer, as the version of the model that gave it."""

    vote: Vote
    answer: str = ""
    details: Mapping[str, Any] = {}


class Judgement(NamedTuple):
    """Both orders of one pair. rule: "" where a judge decided; else by which rule it was decided without one: "empty": a
    candidate without text loses, two of them tie; "missing": a candidate was never made, so neither wins, and both votes are
    "invalid". error: why the judge did not answer; the pair is then unresolved, and a vote that is missing is "invalid"."""

    pair: Pair
    ab: Ballot
    ba: Ballot
    rule: str = ""
    error: str = ""


class Judge(Protocol):
    """`settings`: JSON of what a result needs to be repeated (model, hash of the prompt, version). It does not change while
    the judge works: votes of other settings are asked for anew."""

    def settings(self) -> dict[str, Any]: ...

    def vote(self, pair: Pair, swapped: bool) -> Ballot:
        """One ballot; swapped: B is read first. The vote is of the pair's A or B all the same. Called by several threads.

        Raises:
            JudgeError: no answer after all retries.
            InputError: nothing can be asked at all (a wrong key, an unknown model): ends the run.
        """
        ...


class JudgeError(Exception):
    """A judge could not be asked: the pair stays unresolved, and the next run asks again."""


class Question(NamedTuple):
    """A ballot to be asked for."""

    pair: Pair
    swapped: bool

    @property
    def order(self) -> str:
        return ORDERS[self.swapped]


def judge_pairs(
    pairs: Sequence[Pair],
    judge: Judge,
    path: str | Path,
    *,
    concurrency: int = 8,
    progress: Callable[[int, int], None] | None = None,
    announce: Callable[[Sequence[Question]], None] | None = None,
) -> list[Judgement]:
    """Both orders of every pair, in the order of the pairs.

    The file at `path` has one line a ballot and grows as answers come: a run that was killed asks only for what is not there.
    A vote counts for the very texts, and the settings of the judge, that its line was written for. At the end the file is
    written anew in the order of the pairs, so that its bytes are the same however often the run was killed. Unresolved pairs
    are in the list with their error and, one a line, in `unresolved_path(path)`.

    Args:
        concurrency: threads that call `judge.vote`. Ctrl-C does not wait for them; what they have answered is stored.
        progress: called with (ballots received, ballots requested).
        announce: called once with the questions to be asked, before the first one.

    Raises:
        InputError: two pairs of one key, a line that was not written here, or the judge cannot be asked at all.
    """
    counts = Counter(pair.key for pair in pairs)
    if twice := next((key for key, count in counts.items() if count > 1), None):
        raise InputError(f"segment {shortened(twice)}", f"{counts[twice]} times", "once", "leave the others out")
    settings = json.loads(json.dumps(judge.settings()))
    digests = {pair.key: _digest(pair) for pair in pairs}
    errors: dict[str, str] = {}
    with json_lines.Appender(path) as file:
        ballots = _read_ballots(file, settings, digests)
        questions = [Question(pair, swapped) for pair in pairs if not _rule(pair) for swapped in (False, True)]
        questions = [question for question in questions if (question.pair.key, question.order) not in ballots]
        if announce:
            announce(questions)

        def store(question: Question, answer: Ballot | JudgeError) -> None:
            key = question.pair.key
            if isinstance(answer, JudgeError):
                errors.setdefault(key, str(answer))
                return
            answer = answer._replace(answer=shortened(answer.answer, MAX_ANSWER))  # as a run that goes on reads it
            ballots[key, question.order] = answer
            file.add(_record(key, question.order, answer, "", settings, digests[key]))

        _ask(questions, judge, concurrency, store, progress)
    judgements = [_judgement(pair, ballots, errors.get(pair.key, NOT_ASKED)) for pair in pairs]
    json_lines.write(path, _records(judgements, ballots, settings, digests))
    left = [{"key": each.pair.key, "video": each.pair.video, "error": each.error} for each in unresolved(judgements)]
    json_lines.write(unresolved_path(path), left)
    return judgements


def unresolved_path(path: str | Path) -> Path:
    """Where `judge_pairs` lists the pairs that its file has no votes for."""
    return local_path(path).with_name("unresolved.jsonl")


def unresolved(judgements: Iterable[Judgement]) -> list[Judgement]:
    """Those whose judge did not answer: a result without them would be of other segments than it says."""
    return [judgement for judgement in judgements if judgement.error]


def served(judgements: Iterable[Judgement]) -> dict[str, dict[str, int]]:
    """Votes by the model that gave them, as the server calls it, and by the temperature that it took: what only the answers of
    a judge tell. Empty for a judge that is no server."""
    details = [ballot.details for each in judgements if not each.rule for ballot in (each.ab, each.ba)]
    models = Counter(str(each["model"]) for each in details if each.get("model"))
    temperatures = Counter(
        "none" if each["temperature"] is None else f"{each['temperature']:g}" for each in details if "temperature" in each
    )
    return {"served_models": dict(sorted(models.items())), "served_temperatures": dict(sorted(temperatures.items()))}


def _rule(pair: Pair) -> str:
    if pair.a.missing or pair.b.missing:
        return "missing"
    return "" if pair.a.text.strip() and pair.b.text.strip() else "empty"


def _by_rule(pair: Pair, rule: str) -> Ballot:
    if rule == "missing":
        return Ballot("invalid")
    if pair.a.text.strip():
        return Ballot("A")
    return Ballot("B" if pair.b.text.strip() else "tie")


def _judgement(pair: Pair, ballots: dict[tuple[str, str], Ballot], error: str) -> Judgement:
    if rule := _rule(pair):
        ballot = _by_rule(pair, rule)
        return Judgement(pair, ballot, ballot, rule)
    ab, ba = (ballots.get((pair.key, order)) for order in ORDERS)
    if ab and ba:
        return Judgement(pair, ab, ba)
    return Judgement(pair, ab or Ballot("invalid"), ba or Ballot("invalid"), error=error)


def _ask(
    questions: Sequence[Question],
    judge: Judge,
    concurrency: int,
    store: Callable[[Question, Ballot | JudgeError], None],
    progress: Callable[[int, int], None] | None,
) -> None:
    """`store` is called by this thread alone, interrupted or not, with all that was answered."""
    workers = Workers(lambda question: judge.vote(*question), questions, concurrency)
    failures = 0
    try:
        for done, (question, answer) in enumerate(workers, 1):
            if not isinstance(answer, Ballot | JudgeError):
                raise answer
            store(question, answer)
            if progress:
                progress(done, len(questions))
            failures = failures + 1 if isinstance(answer, JudgeError) else 0
            if failures >= max(MAX_FAILURES, 2 * concurrency):
                break
    finally:
        for question, answer in workers.stop():
            if isinstance(answer, Ballot | JudgeError):
                store(question, answer)


def _digest(pair: Pair) -> str:
    """SHA-256 of all that a judge may read. The key is left out: it names the pair, and each line has it."""
    content = json.dumps(pair[1:], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def _record(key: str, order: str, ballot: Ballot, rule: str, settings: dict[str, Any], digest: str) -> dict[str, Any]:
    record = {"key": key, "order": order, "vote": ballot.vote, "answer": ballot.answer}
    return {**record, "details": dict(ballot.details), "rule": rule, "judge": settings, "pair_sha256": digest}


def _records(
    judgements: Iterable[Judgement],
    ballots: dict[tuple[str, str], Ballot],
    settings: dict[str, Any],
    digests: dict[str, str],
) -> Iterator[dict[str, Any]]:
    for each in judgements:
        for order, ballot in zip(ORDERS, (each.ab, each.ba), strict=True):
            if each.rule or (each.pair.key, order) in ballots:
                yield _record(each.pair.key, order, ballot, each.rule, settings, digests[each.pair.key])


def _read_ballots(
    file: json_lines.Appender, settings: dict[str, Any], digests: dict[str, str]
) -> dict[tuple[str, str], Ballot]:
    """Of the lines that are there, those of a judge, of these texts and of these settings. The first counts."""
    ballots: dict[tuple[str, str], Ballot] = {}
    for number, record in enumerate(file.existing(), 1):
        source = f"{file.path.name}:{number}"
        key, order, vote, answer, rule, digest = (
            json_lines.require(record, name, str, source) for name in ("key", "order", "vote", "answer", "rule", "pair_sha256")
        )
        if order not in ORDERS or vote not in get_args(Vote):
            expected = "a ballot written by svlm evaluate"
            raise InputError(source, f"{order!r:.20}, {vote!r:.20}", expected, "move the file away")
        if not rule and record.get("judge") == settings and digests.get(key) == digest:
            ballots.setdefault((key, order), Ballot(vote, answer, json_lines.require(record, "details", dict, source)))
    return ballots
