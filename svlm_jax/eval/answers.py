"""What a model answered, read from its reply: a letter, yes or no, a number. Strictly first, and as the published scripts do.

A strict parse returns None where the reply does not say one thing, and None is a wrong answer. The official rules are those of
the published scorers: they take a reply and the right answer, and say whether it counts; numbers of papers are made with them.
Knows no benchmark's files. Host side, never jax.
"""

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"
COUNT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_WRAPPING = " \t\r\n\"'`*_()[]{}<>"
_LABEL = r"[\"'`*_(\[{]*(?P<letter>[A-J])[\"'`*_)\]}]*"
# A letter that is said to be the answer: "the answer is (C)", "Answer: C", "option C".
_CUE = re.compile(r"\b(?:(?i:answers?|options?|choices?))\b(?:\s+(?i:is|would be))?\s*:?\s*" + _LABEL + r"(?![\w'])")
_LEADING = re.compile(_LABEL + r"(?:[ \t]*[.):,;*\n-]|\s*$)")
# What makes of a letter a word of a sentence: "A red kite", "I think"; but not "A is right", nor "A or B".
_GOES_ON = r"\s+(?!(?:or|and|is|because|since)\b)[a-z]"
# A letter on its own; "B's" is a name.
_ALONE = re.compile(rf"(?<![\w'])(?:[AI](?!{_GOES_ON})|[B-HJ])(?![\w'])")
_YES_NO = re.compile(r"(?:(?i:(?:the\s+)?answer(?:\s+is)?\s*:?\s*))?\W*(?P<word>(?i:yes|no))\b(?P<rest>.*)", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.,:/+-])\d+(?![\w]|[.,:/-]\d)")


def letter(reply: str | None, options: int | Sequence[str]) -> str | None:
    """The one option that a reply names: "B", "(b)", "B. a red kite", "The answer is B", or, where the texts of the options are
    given, "A red kite", which is the second one's. None where it names none, several, or one that is not among the first
    `options` letters."""
    count = options if isinstance(options, int) else len(options)
    text = (reply or "").strip()
    if not isinstance(options, int) and (repeated := _repeated(text, options)):
        return repeated
    bare = text.strip(_WRAPPING + ".:;,")
    if len(bare) == 1:
        named = {bare.upper()}
    elif cues := {match["letter"] for match in _CUE.finditer(text) if _is_label(text, match)}:
        named = cues
    elif (match := _LEADING.match(text)) and _is_label(text, match):
        rest = text[match.end() :]
        named = {match["letter"]}
        if (second := re.match(r"\W*(?:(?i:and|or)\b)?\W*" + _LABEL, rest)) and _is_list_item(rest, second):
            named.add(second["letter"])
    else:
        named = set(_ALONE.findall(text))
    if len(named) != 1:
        return None
    (choice,) = named
    return choice if choice in LETTERS[:count] else None


def _repeated(text: str, options: Sequence[str]) -> str | None:
    """The letter of the one option whose text a reply is, or its first line, in any case, with or without a full stop. In a
    stream the lines after the answer are commentary. A letter alone is no text."""
    bare = [_bare(option.removeprefix(f"{name}.")) for name, option in zip(LETTERS, options, strict=False)]
    for candidate in (_bare(text), _bare(text.partition("\n")[0])):
        if len(candidate) > 1 and bare.count(candidate) == 1:
            return LETTERS[bare.index(candidate)]
    return None


def _bare(text: str) -> str:
    return " ".join(text.split()).strip(_WRAPPING + ".:;,!").lower()


def _is_label(text: str, match: re.Match[str]) -> bool:
    """The letter is no word of a sentence: not the article of "A red kite", nor the I of "I think"."""
    return not (match["letter"] in "AI" and re.match(_GOES_ON, text[match.end("letter") :]))


def _is_list_item(text: str, match: re.Match[str]) -> bool:
    """What follows a letter is a second one ("A or B", "A, B") and not the text of an option ("C. B flat")."""
    return not re.match(r"[\"'`*_)\]}]*[\w']|\s+\w", text[match.end("letter") :])


def yes_no(reply: str | None) -> bool | None:
    """Whether a reply begins with yes or with no ("No, not yet", "The answer is yes", "Y"). None where it begins otherwise, or
    with both ("Yes and no")."""
    text = (reply or "").strip(_WRAPPING + ".:;,!")
    if text.upper() in ("Y", "N"):
        return text.upper() == "Y"
    match = _YES_NO.match(text)
    if match is None or re.match(r"\W*(?:(?i:and|or)\W+)?(?i:yes|no)\b", match["rest"]):
        return None
    return match["word"].lower() == "yes"


def number(reply: str | None) -> int | None:
    """The one whole number in a reply ("3", "They did it 3 times."), or the word for one that is all there is ("Three.", up to
    ten). None for none, for two ("1 0", "3-4"), and for what is no whole number ("2.5", "-1", "3rd")."""
    text = (reply or "").strip()
    word = text.strip(_WRAPPING + ".:;,!").lower()
    if word in COUNT_WORDS:
        return COUNT_WORDS.index(word)
    numbers = _NUMBER.findall(text)
    if len(numbers) != 1 or len(re.findall(r"\d+", text)) != 1 or len(numbers[0]) > 9:
        return None
    return int(numbers[0])


def official_contains(reply: str | None, ground_truth: str) -> bool:
    """OVO-Bench, letters: the letter occurs anywhere in the reply, so that "A" counts in "All of them"."""
    return ground_truth in (reply or "")


def official_yes_no(reply: str | None, ground_truth: bool) -> bool:
    """OVO-Bench, steps and clues: "Yes" or "No" occurs anywhere, in this case, so that "No" counts in "Not sure"; or all of the
    reply is "Y" or "N"."""
    return reply == "NY"[ground_truth] or ("No", "Yes")[ground_truth] in (reply or "")


def official_count(reply: str | None, ground_truth: int) -> bool:
    """OVO-Bench, counts: all digits of the reply, written one after the other, are the number, so that "1 or 0" is ten."""
    return "".join(re.findall(r"\d", reply or "")) == str(ground_truth)


def official_first(reply: str | None, ground_truth: str) -> bool:
    """StreamingBench: the first character of the reply is the letter, so that "A" counts in "All of them"."""
    return (reply or "")[:1] == ground_truth


def contains_phrase(reply: str | None, phrase: str) -> bool:
    """The words of a phrase in a reply, in any case and with any blanks, and not as a part of a longer word or number: "3" is
    not in "13" or in "2:3"."""
    words = re.escape(phrase.strip()).replace(r"\ ", r"\s+")
    return bool(phrase.strip()) and bool(re.search(rf"(?<![\w:.-]){words}(?![\w]|[:.-]\w)", reply or "", re.IGNORECASE))
