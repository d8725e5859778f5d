"""Two candidates and a reference: a judge says which is better, in both orders, and nothing is judged twice or lost.

Owns pairs, ballots and the loop over them. A judge over HTTP is in `eval.http_judge`, one that compares with the truth in
`eval.exact_judge`. Units: seconds of the video.
"""

from typing import Any, Literal, NamedTuple, Protocol

from svlm_jax.eval.commentary import Utterance

Vote = Literal["A", "B", "tie", "invalid"]


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
    """One vote, of A or B as the pair has them, in whichever order the judge read them. answer: what it wrote."""

    vote: Vote
    answer: str = ""


class Judgement(NamedTuple):
    """Both orders of one pair. rule: "" where a judge decided; else by which rule it was decided without one ("empty": a
    candidate has no text, "missing": it has no answer). error: why the judge did not answer; the pair is then unresolved."""

    pair: Pair
    ab: Ballot
    ba: Ballot
    rule: str = ""
    error: str = ""


class Judge(Protocol):
    """`settings`: what a result needs to be repeated (model, hash of the prompt, version)."""

    def settings(self) -> dict[str, Any]: ...

    def vote(self, pair: Pair, swapped: bool) -> Ballot:
        """One ballot; swapped: B is read first. The vote is of the pair's A or B all the same.

        Raises:
            JudgeError: no answer after all retries.
        """
        ...


class JudgeError(Exception):
    """A judge could not be asked: the pair stays unresolved, and the next run asks again."""
