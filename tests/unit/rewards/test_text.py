"""Mentions are words in every script, no pattern outlasts its time, and lengths are worth what the law says."""

import sys
import threading
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from llm_auction_chain import ConfigurationError, MissingDependencyError
from llm_auction_chain.rewards.text import LengthReward, MentionReward, RegexReward

WORDS = st.text(st.characters(categories=["L", "M", "N"]), min_size=1).filter(lambda word: word[0].isalpha())


def mentions(phrases, text):
    return MentionReward([phrases] if isinstance(phrases, str) else phrases, at_most=99).score([], [AIMessage(text)])[0]


@pytest.mark.parametrize(
    ("phrase", "text", "count"),
    [
        ("straße", "STRASSE, Straße", 2),
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}", 1),
        ("\u03a3\u0391\u03a3", "\u03c3\u03b1\u03c2 \u03c3\u03b1\u03c3", 2),
        ("guitar", "guitars guitar_x guitar2 guitar's", 1),
        ("guitar lessons", "guitar\n  lessons", 1),
        (" guitar\t", "A guitar.", 1),
        ("C++", "C++ C++11", 1),
        ("TuneTown", "TuneTown\N{TRADE MARK SIGN}", 1),
        ("guitar", "\N{HEAVY BLACK HEART}\N{VARIATION SELECTOR-16}guitar", 1),
        ("\N{GUITAR}", "\N{GUITAR} \N{GUITAR}\N{VARIATION SELECTOR-16}", 2),
        ("Joe's", "Joe\u2019s and JOE'S", 2),
        ('6" "guitar"', "6\u201d \u201cguitar\u201d", 1),
        ("e-bike", "e\u2011bike, e\u2010bike and e\u2013bike", 3),
        ("e\u2011bike", "e-bike", 1),
        ("guitar", "a _guitar_, __guitar__ or **guitar**, but no _guitar_s, re_guitar_", 3),
        ("__init__", "an __init__", 1),
        ("guitar", "gui\u00adtar", 1),
        ("wait...", "Wait\u2026", 1),
        ("istanbul", "\u0130stanbul, ISTANBUL", 2),
        ("\u0130stanbul", "istanbul i\u0307stanbul", 2),
        ("हिन्दी", "हिन्दी में", 1),
    ],
)
def test_a_mention_is_found_in_every_spelling(phrase, text, count):
    assert mentions(phrase, text) == count


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("吉他", "我弹吉他"),
        ("ギター", "エレキギターを弾く"),
        ("기타", "기타를 치다"),
        ("กีตาร์", "เล่นกีตาร์ไฟฟ้า"),
        ("ກີຕ້າ", "ຫຼິ້ນກີຕ້າໄຟຟ້າ"),
        ("ហ្គីតា", "លេងហ្គីតាអគ្គិសនី"),
        ("ဂစ်တာ", "ဂစ်တာတီးတယ်"),
        ("guitar", "guitarを弾く"),
        ("月", "3月"),
    ],
)
def test_no_boundary_is_asked_for_where_a_script_writes_none(phrase, text):
    assert mentions(phrase, text) == 1


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("cafe", "cafe\N{COMBINING ACUTE ACCENT}"),
        ("हिन्द", "हिन्दी"),
        ("ก", "กี"),
        ("기", "김"),
        ("woman", "woman\N{ZERO WIDTH JOINER}x"),
        ("\N{WOMAN}", "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{MICROPHONE}"),
        ("\N{MICROPHONE}", "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{MICROPHONE}"),
        ("\N{WOMAN}", "\N{WOMAN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4}"),
    ],
)
def test_a_mention_does_not_end_within_what_reads_as_one_character(phrase, text):
    assert mentions(phrase, text) == 0


def test_where_phrases_overlap_the_longest_counts_once():
    phrases = ["guitar", "lessons", "acoustic guitar", "guitar lessons", "a guitar"]
    assert mentions(phrases, "guitar lessons and a guitar") == 2
    assert mentions(phrases, "acoustic guitar lessons") == 2
    assert mentions(["a b", "a"], "a bc") == 1  # the longer one is no whole word here


@given(st.text(), st.lists(WORDS, min_size=1, max_size=4), st.integers(1, 3), st.floats(0.0, 1e6))
def test_mentions_are_worth_no_more_than_all_that_are_paid(text, phrases, at_most, value):
    (worth,) = MentionReward(phrases, value=value, at_most=at_most).score([], [AIMessage(text)])
    assert worth in [value * count for count in range(at_most + 1)]


@given(WORDS, st.integers(0, 3), st.sampled_from(["NFC", "NFD"]), st.sampled_from([str, str.casefold]))
def test_a_word_of_any_script_is_mentioned_as_often_as_it_stands_alone(word, times, form, cased):
    assert mentions(word, " ".join([unicodedata.normalize(form, cased(word))] * times)) == times


@given(st.text(), st.text(), WORDS)
def test_mentions_in_lines_add_up(one, other, phrase):
    assert mentions(phrase, f"{one}\n{other}") == mentions(phrase, one) + mentions(phrase, other)


def test_an_adversarial_text_takes_linear_time():
    reward = MentionReward(["a" * 300, "a " * 100 + "b"])
    texts = ("a" * 100_000, "a " * 50_000, " " * 100_000, "a" + "\N{COMBINING ACUTE ACCENT}" * 100_000)
    start = time.thread_time()
    assert reward.score([], [AIMessage(text) for text in texts]) == [0.0] * 4
    assert time.thread_time() - start < 5


def test_a_mention_needs_something_to_look_for():
    for bad in (
        {"value": float("nan")},
        {"value": True},
        {"at_most": True},
        {"phrases": ["a", 1]},
        {"phrases": iter("a")},
        {"phrases": ["\u00ad"]},
    ):
        with pytest.raises(ConfigurationError):
            MentionReward(**{"phrases": ["a"], **bad})


def test_matches_are_paid_up_to_a_limit():
    replies = [AIMessage("$5, $7 and $9"), AIMessage("nothing")]
    assert RegexReward(r"\$\d", value=0.5, at_most=2).score([], replies) == [1.0, 0.0]
    assert RegexReward("(?i)NOTHING").score([], replies) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("(a|aa)+$", "a" * 100 + "b"),
        (r"(\w+\s*)+\d", "ab " * 2000),
        (r"(?:(.*)\1)*\d", "ab " * 2000),
        (r"(?=.*.*.*.*b)", "a" * 20_000),
        (r"(?R)?a(?R)?b", "a" * 2000),
        (r"(?b)(?:abcdefghijklabcdefghijkl){e<=16}", "ab " * 2000),
    ],
)
def test_a_catastrophic_pattern_runs_out_of_time_and_others_go_on(pattern, text):
    ticks, over = [], threading.Event()

    def tick():
        while not over.wait(0.001):
            ticks.append(None)

    other = threading.Thread(target=tick)
    other.start()
    start = time.process_time()
    with pytest.raises(TimeoutError, match="avoid repeats"):
        RegexReward(pattern, at_most=1_000_000).score([], [AIMessage(text)] * 50)
    over.set()
    other.join()
    assert time.process_time() - start < 3  # each reply would take ages
    assert len(ticks) > 3


@pytest.mark.parametrize("pattern", ["(a+)+$", "(x+x+)+y"])
def test_a_pattern_that_only_looks_catastrophic_is_answered(pattern):
    assert RegexReward(pattern).score([], [AIMessage("a" * 40 + "x" * 40 + "b")]) == [0.0]


@pytest.mark.parametrize(
    "pattern",
    [
        "((a{1000}){1000}){1000}",
        "(?:(?:a|b|)){99999999}",
        "(?x)a{1 0 0 0 0 0 0 0}",
        "(?x)a{1#,\n0000000}",
        "a{" + "9" * 900 + "}",
        "a" * 1001,
        "(" * 450 + ")" * 450,
        "(",
        "[a",
        r"\L<x>",
        "(?V0)(?V1)",
        r"\N{NO SUCH}",
        None,
    ],
)
def test_a_pattern_that_is_none_or_too_large_is_refused_before_it_is_compiled(pattern):
    with pytest.raises(ConfigurationError, match="RegexReward"):
        RegexReward(pattern)


def test_useful_counts_are_not_too_large():
    uuid = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    reply = AIMessage("123e4567-e89b-12d3-a456-426614174000 and a guitar")
    assert RegexReward(uuid).score([], [reply]) == [1.0]
    assert RegexReward(".{0,200}guitar.{0,200}").score([], [reply]) == [1.0]


def test_a_pattern_needs_its_package_time_and_numbers(monkeypatch):
    for bad in ({"timeout": 0}, {"timeout": float("inf")}, {"at_most": 0}, {"value": "x"}):
        with pytest.raises(ConfigurationError):
            RegexReward("a", **bad)
    monkeypatch.setitem(sys.modules, "regex", None)
    with pytest.raises(MissingDependencyError, match=r"llm-auction-chain\[rewards\]"):
        RegexReward("a")


def test_the_worth_of_a_length_falls_to_nothing_at_the_tolerance():
    replies = [AIMessage(" ".join(["w"] * n)) for n in (10, 8, 12, 5, 15, 0, 99)]
    assert LengthReward(10, 4, value=2.0).score([], replies) == [2.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_a_character_is_one_however_it_is_composed():
    replies = [AIMessage("e\N{COMBINING ACUTE ACCENT}吉他"), AIMessage("\N{LATIN SMALL LETTER E WITH ACUTE}吉他")]
    assert LengthReward(3, 1, unit="characters").score([], replies) == [1.0, 1.0]


@given(st.text(), st.floats(0, 1e3), st.floats(1e-3, 1e3), st.sampled_from(["words", "characters"]))
def test_a_length_is_worth_between_nothing_and_all(text, target, tolerance, unit):
    (worth,) = LengthReward(target, tolerance, value=3.0, unit=unit).score([], [AIMessage(text)])
    assert 0.0 <= worth <= 3.0


def test_a_length_needs_sensible_settings():
    for bad in ({"target": -1}, {"tolerance": 0}, {"tolerance": float("nan")}, {"unit": "lines"}, {"value": None}):
        with pytest.raises(ConfigurationError):
            LengthReward(**{"target": 1, "tolerance": 1, **bad})


def test_many_phrases_hold_up_no_other_thread_and_too_many_are_refused():
    reward = MentionReward([f"chord {k:04}" for k in range(9000)])
    text, longest, over = "a chord 12345 and " * 2000 + "chord 8999", [0.0], threading.Event()

    def tick():
        last = time.perf_counter()
        while not over.is_set():
            time.sleep(0.001)
            last, before = time.perf_counter(), last
            longest[0] = max(longest[0], last - before)

    other = threading.Thread(target=tick)
    other.start()
    start = time.thread_time()
    assert reward.score([], [AIMessage(text)] * 4) == [1.0] * 4
    assert time.thread_time() - start < 5
    over.set()
    other.join()
    assert longest[0] < 1
    for phrases in (["a"] * 10_001, ["a" * 1000] * 101):
        with pytest.raises(ConfigurationError, match="at most 10000 phrases of 100000 characters in all"):
            MentionReward(phrases)


def test_phrases_of_many_marks_are_refused_or_read_at_once():
    marks, start = "a" + "\u0327\u0301" * 499, time.thread_time()  # which sorting takes quadratic time
    MentionReward([marks] * 100)
    with pytest.raises(ConfigurationError, match=r"phrases\[0\] must be a text of at most 1000 characters"):
        MentionReward([marks * 100])
    assert time.thread_time() - start < 5


class Busy:
    """A pattern of `regex` in a process whose other threads spend nearly all of the time that it counts."""

    def __init__(self, own):
        self.own, self.timeouts = own, []

    def finditer(self, text, *, timeout, concurrent):
        self.timeouts.append(timeout)
        spent = time.thread_time() + min(self.own, timeout / 50)
        while time.thread_time() < spent:
            pass
        if timeout / 50 < self.own:
            raise TimeoutError
        return iter([text])


def test_a_pattern_has_the_time_of_its_own_thread_however_much_others_spend(monkeypatch):
    reward = RegexReward("a", timeout=0.1)
    monkeypatch.setitem(vars(reward), "_compiled", Busy(0.01))
    assert reward.score([], [AIMessage("a")] * 2) == [1.0, 1.0]
    monkeypatch.setitem(vars(reward), "_compiled", Busy(1.0))
    with pytest.raises(TimeoutError):
        reward.score([], [AIMessage("a")])


def test_the_public_reason_of_a_slow_pattern_shows_no_pattern():
    with pytest.raises(TimeoutError, match=r"more than 0\.01 s") as error:
        RegexReward("(S|SS)+$", timeout=0.01).score([], [AIMessage("S" * 100 + "!")])
    assert "S|SS" not in str(error.value)


def test_at_most_is_a_number_that_can_be_counted_to():
    for kind in (MentionReward, RegexReward):
        with pytest.raises(ConfigurationError, match="at_most"):
            kind("a" if kind is RegexReward else ["a"], at_most=10**400)
