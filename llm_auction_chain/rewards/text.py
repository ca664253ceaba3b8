"""Rewards that count in the text of a reply: mentions, matches of a pattern, length."""

import re
import time
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import islice
from typing import Any, Literal

from typing_extensions import override

from llm_auction_chain.errors import MissingDependencyError
from llm_auction_chain.rewards.base import Bounds, Prompt, Replies, Reward
from llm_auction_chain.validators import choice, number, refuse, text, whole_number

__all__ = ["LengthReward", "MentionReward", "RegexReward"]

# Scripts written without spaces, or whose particles stick to the word: Thai, Lao, Myanmar, Hangul, Khmer, kana, Han.
_SPACELESS = (
    r"\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u19e0-\u19ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029"
    r"\u3038-\u303b\u3041-\u30ff\u3131-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\ua9e0-\ua9ff"
    r"\uaa60-\uaa7f\uac00-\ud7fb\uf900-\ufaff\uff66-\uffdc\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
)
# What goes on with a character though it is no mark: Thai and Lao am, jamo behind a jamo, skin tones, tags.
_CONTINUING = r"\u0e33\u0eb3\u1160-\u11ff\ud7b0-\ud7fb\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f"
_JOINERS = r"\u200c\u200d"
# Punctuation that models and people write in different ways, and what is invisible: soft hyphens, and selectors, which
# choose how the character before them looks.
_ALIKE = {
    **dict.fromkeys([0xAD, 0x2060, 0xFEFF, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)], ""),
    **dict.fromkeys(map(ord, "\u2018\u2019\u201b\u2032\uff07"), "'"),
    **dict.fromkeys(map(ord, "\u201c\u201d\u201e\u201f\u2033\uff02"), '"'),
    **dict.fromkeys([*range(0x2010, 0x2016), 0x2212, 0xFE63, 0xFF0D], "-"),
    0x2026: "...",
}
_EMPHASIS = re.compile(r"(?<!\w)_+(?=[^\W_])|(?<=[^\s_])_+(?!\w)")  # of Markdown
_CONNECTORS = r"\u203f\u2040\u2054\ufe33\ufe34\ufe4d-\ufe4f\uff3f"

_MOST_PHRASES, _MOST_LETTERS = 10_000, 100_000
_LONGEST_PHRASE = 1000  # sorting the marks of a text, as Unicode does, takes quadratic time
_MOST_PAID = 1 << 31
_LONGEST_PATTERN = 1000
_LARGEST_PROGRAM = 1_000_000
# A count as `regex` reads it, which in verbose mode skips spaces and comments.
_COUNT = re.compile(r"\{([0-9\s]*)(#?)")


@dataclass(frozen=True)
class MentionReward(Reward):
    """Worth `value * min(mentions, at_most)`. A mention is a phrase as whole words, in any case and script.

    Straße equals STRASSE, an é of two characters equals an é of one, and white space, dashes and straight and curly
    quotation marks are each alike. Soft hyphens, and underscores around a word, do not count. If phrases overlap, the
    one that begins first counts, and of those the longest; no letter is part of two mentions. A mention neither begins
    nor ends inside a word, that is next to a letter, mark, number or connector like `_`. Scripts without spaces or with
    attached particles are the exception: Han, kana, Hangul, Thai, Lao, Khmer and Myanmar.

    The phrases may come from a party that you do not trust. Other threads go on while they are counted, and a word
    takes no longer the more phrases there are, but for one look at each of the lengths that phrases have.

    Attributes:
        phrases: the phrases to count: at most 10,000, each of at most 1,000 characters, of 100,000 in all.
        value: money per mention.
        at_most: the most mentions that are paid.

    Raises:
        ConfigurationError: no phrases or too many, an empty phrase, no finite value, or `at_most` below 1.

    >>> from langchain_core.messages import AIMessage
    >>> MentionReward(["guitar"], value=2.0, at_most=1).score([], [AIMessage("A guitar, my guitar!"), AIMessage("Hi")])
    [2.0, 0.0]
    """

    phrases: Sequence[str]
    value: float = 1.0
    at_most: int = 1

    def __post_init__(self) -> None:
        """Check the settings."""
        if isinstance(self.phrases, str) or not isinstance(self.phrases, Collection) or not self.phrases:
            raise refuse("MentionReward.phrases", "a list of at least one phrase", self.phrases)
        letters = 0
        for k, phrase in enumerate(self.phrases):
            letters += len(text(name := f"MentionReward.phrases[{k}]", phrase, most=_LONGEST_PHRASE))
            if len(self.phrases) > _MOST_PHRASES or letters > _MOST_LETTERS:
                expected = f"at most {_MOST_PHRASES} phrases of {_MOST_LETTERS} characters in all"
                raise refuse("MentionReward.phrases", expected, len(self.phrases), "They have more.")
            text(name, _folded.__wrapped__(phrase))
        number("MentionReward.value", self.value)
        whole_number("MentionReward.at_most", self.at_most, least=1, below=_MOST_PAID)

    @property
    @override
    def bounds(self) -> Bounds:
        return self._between(self.value, self.at_most)

    @override
    def score(self, prompt: Prompt, replies: Replies) -> list[float]:
        return [self.value * _at_most(self.at_most, self._mentions(str(reply.text))) for reply in replies]

    def _mentions(self, text: str) -> Iterator[str]:
        """Yield the phrases that a text mentions, one after the other."""
        text, place, ends = _folded(text), 0, _edges()[1]
        while begins := self._beginnings.search(text, place):
            place = begins.start()
            for length in self._lengths[text[place]]:
                phrase = text[place : place + length]
                if phrase in self._phrases and ends.match(text, place + len(phrase)):
                    yield phrase
                    place += len(phrase)
                    break
            else:
                place += 1

    @cached_property
    def _phrases(self) -> frozenset[str]:
        return frozenset(map(_folded.__wrapped__, self.phrases))

    @cached_property
    def _lengths(self) -> dict[str, list[int]]:
        """The lengths of the phrases that begin with a letter, from the longest."""
        lengths: dict[str, set[int]] = {}
        for phrase in self._phrases:
            lengths.setdefault(phrase[0], set()).add(len(phrase))
        return {letter: sorted(several, reverse=True) for letter, several in lengths.items()}

    @cached_property
    def _beginnings(self) -> re.Pattern[str]:
        letters = "".join(map(re.escape, sorted(self._lengths)))
        return re.compile(rf"{_edges()[0]}[{letters}]")


@dataclass(frozen=True)
class RegexReward(Reward):
    r"""Worth `value * min(matches, at_most)`, with the matches of a regular expression that do not overlap.

    The pattern may come from a party that you do not trust. The package `regex` runs it: other threads go on, and it
    stops at the timeout. A pattern that would compile to a large program is refused before: one of more than 1000
    characters, or with counts like `{1000}` whose product times the pattern's length is above a million.

    Attributes:
        pattern: in the syntax of `regex`, a superset of `re`; flags are written inside, like `(?i)`.
        value: money per match.
        at_most: the most matches that are paid. The search ends there.
        timeout: processor seconds of the thread that asks, for all replies together.

    Raises:
        ConfigurationError: no such pattern, one that is too large, or a number out of range.
        MissingDependencyError: `regex` is not installed.
        TimeoutError: from `score`, the time is up.

    >>> from langchain_core.messages import AIMessage
    >>> RegexReward(r"\$\d+", at_most=3).score([], [AIMessage("$5 now, $7 later"), AIMessage("free")])
    [2.0, 0.0]
    """

    pattern: str
    value: float = 1.0
    at_most: int = 1
    timeout: float = 0.1

    def __post_init__(self) -> None:
        """Check the settings."""
        number("RegexReward.value", self.value)
        whole_number("RegexReward.at_most", self.at_most, least=1, below=_MOST_PAID)
        number("RegexReward.timeout", self.timeout, least=1e-3, most=60.0)
        if not isinstance(self.pattern, str) or len(self.pattern) > _LONGEST_PATTERN:
            raise refuse("RegexReward.pattern", f"a text of at most {_LONGEST_PATTERN} characters", self.pattern)
        if _program_size(self.pattern) > _LARGEST_PROGRAM:
            hint = "Its counts make it too large: repeat less, and write counts without comments."
            raise refuse("RegexReward.pattern", "a small pattern", self.pattern, hint)
        self._compiled  # noqa: B018 - an invalid pattern is refused here

    @property
    @override
    def bounds(self) -> Bounds:
        return self._between(self.value, self.at_most)

    @override
    def score(self, prompt: Prompt, replies: Replies) -> list[float]:
        end = time.thread_time() + self.timeout
        return [self.value * self._matches(str(reply.text), end) for reply in replies]

    def _matches(self, text: str, end: float) -> int:
        seconds = end - time.thread_time()
        while seconds > 0.0:  # for `regex`, a negative timeout is none
            try:
                return _at_most(self.at_most, self._compiled.finditer(text, timeout=seconds, concurrent=True))
            except TimeoutError:
                # `regex` counts the time of all threads, which others may have spent.
                seconds = 2.0 * seconds if time.thread_time() < end else 0.0
        raise TimeoutError(f"The pattern takes more than {self.timeout:g} s; avoid repeats within repeats.")

    @cached_property
    def _compiled(self) -> Any:
        try:
            import regex
        except ImportError as error:
            raise MissingDependencyError(
                "regex is not installed; run: pip install 'llm-auction-chain[rewards]'"
            ) from error
        try:
            return regex.compile(self.pattern, cache_pattern=False)
        except (regex.error, LookupError, ValueError, OverflowError, RecursionError) as error:
            raise refuse("RegexReward.pattern", "a regular expression", self.pattern, f"It is not: {error}.") from error


@dataclass(frozen=True)
class LengthReward(Reward):
    """Worth `value * max(0, 1 - |length - target| / tolerance)`: all at the target, nothing beyond the tolerance.

    Attributes:
        target: the length that is worth most.
        tolerance: the distance from it at which nothing is left.
        value: money at the target.
        unit: of all lengths. White space separates `words`. For a language without it, count `characters`; an é is
            one.

    Raises:
        ConfigurationError: a negative target, a tolerance that is not positive, another unit, or no number.

    >>> from langchain_core.messages import AIMessage
    >>> replies = [AIMessage("one two three four"), AIMessage("one two three"), AIMessage("")]
    >>> LengthReward(target=4, tolerance=2, value=3.0).score([], replies)
    [3.0, 1.5, 0.0]
    """

    target: float
    tolerance: float
    value: float = 1.0
    unit: Literal["words", "characters"] = "words"

    def __post_init__(self) -> None:
        """Check the settings."""
        number("LengthReward.target", self.target, least=0.0)
        number("LengthReward.tolerance", self.tolerance, above=0.0)
        number("LengthReward.value", self.value)
        choice("LengthReward.unit", self.unit, ("words", "characters"))

    @property
    @override
    def bounds(self) -> Bounds:
        return self._between(self.value)

    @override
    def score(self, prompt: Prompt, replies: Replies) -> list[float]:
        return [
            self.value * max(0.0, 1.0 - abs(self._length(str(reply.text)) - self.target) / self.tolerance)
            for reply in replies
        ]

    def _length(self, text: str) -> int:
        return len(text.split() if self.unit == "words" else unicodedata.normalize("NFC", text))


@lru_cache(maxsize=1024)  # all agents of an auction read the same replies
def _folded(text: str) -> str:
    """Return the same text for all spellings that are canonically equal in any case, with single blanks.

    It is composed, so that a syllable of Hangul is one character. Compatibility forms stay different: they would turn
    a trademark sign into letters.
    """
    folded = unicodedata.normalize("NFD", text.translate(_ALIKE)).casefold().replace("i\u0307", "i")  # of a capital
    return _EMPHASIS.sub("", " ".join(unicodedata.normalize("NFC", folded).split()))


@cache
def _edges() -> tuple[str, re.Pattern[str]]:
    """Return what matches where a mention may begin, as a pattern, and where it may end, compiled."""
    word = rf"[\w{_CONNECTORS}{_JOINERS}{_marks()}]"
    touching = rf"(?<=[{_SPACELESS}])|(?=[{_SPACELESS}])"
    goes_on = rf"[{_CONTINUING}{_JOINERS}{_marks()}]"
    return rf"(?:(?<!{word})|{touching})", re.compile(rf"(?!{goes_on})(?:(?!{word})|{touching})")


@cache
def _marks() -> str:
    """Return all marks that a word may have, as a class of `re`. Higher code points have only selectors."""
    kinds = "".join(unicodedata.category(chr(code))[0] for code in range(0x20000))
    return "".join(f"{chr(run.start())}-{chr(run.end() - 1)}" for run in re.finditer("M+", kinds))


def _at_most(most: int, matches: Any) -> int:
    return sum(1 for _ in islice(matches, most))


def _program_size(pattern: str) -> int:
    """Return a bound on the size of a compiled pattern, in which every count is written out."""
    size = len(pattern)
    for digits, comment in _COUNT.findall(pattern):
        size *= _LARGEST_PROGRAM + 1 if comment else max(1, int("".join(digits.split()) or "1"))
    return size
