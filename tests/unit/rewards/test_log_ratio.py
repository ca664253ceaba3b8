"""Agents that are language models under instructions of their own: their law, and that none spoils another's."""

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableLambda
from pydantic import PrivateAttr

from llm_auction_chain import Agent, AuctionRunnable, ConfigurationError
from llm_auction_chain.errors import ContextWindowError
from llm_auction_chain.mechanism import settle
from llm_auction_chain.reports import Terms, collect
from llm_auction_chain.rewards import ClickReward, LogRatioReward, MentionReward
from llm_auction_chain.rewards.base import Reward
from llm_auction_chain.rewards.log_ratio import groups_by_reward
from llm_auction_chain.testing import MarkovChatModel
from llm_auction_chain.waiting import AWAITING, BLOCKING, run

TILTS = {"Praise b.": (0.0, 1.0, 0.0), "Praise c.": (0.0, 0.0, 1.5), "Never a.": (-2.0, 0.0, 0.0)}
PROMPT = [HumanMessage("Hi")]
PRAISES_B, PRAISES_C = [SystemMessage("Praise b.")], [SystemMessage("Praise c.")]
GOOD = Agent("good", lambda prompt, reply: 1.0)


class Counting(MarkovChatModel):
    """Notes how many conditions it was asked about at a time."""

    _asked: list = PrivateAttr(default_factory=list)

    def score_conditions(self, conditions, replies, **settings):
        self._asked.append(len(conditions))
        return super().score_conditions(conditions, replies, **settings)


MODEL = MarkovChatModel(tilts=TILTS)
LAW = MODEL.enumerate()
REPLIES = [AIMessage(text) for text in LAW]


def log_ratios(told, replies=REPLIES, before=()):
    """Return `log pi_i - log pi_ref` by enumeration, the model being told so much more than before."""
    own, reference = MODEL.enumerate([[*before, *told]]), MODEL.enumerate([before])
    return np.array([own[reply.text] - reference[reply.text] for reply in replies])


@pytest.fixture(params=["blocking", "awaiting"])
def waiting(request):
    return request.param


@pytest.fixture
def ask(waiting):
    """Ask agents, as a caller that blocks and as one that awaits."""

    def ask(*agents, replies=REPLIES, **terms):
        if waiting == "blocking":
            return run(collect(agents, PROMPT, replies, Terms(**terms), waiter=BLOCKING))
        return asyncio.run(collect(agents, PROMPT, replies, Terms(**terms), waiter=AWAITING))

    return ask


@pytest.fixture
def hold(waiting):
    """Hold an auction, as a caller that blocks and as one that awaits."""

    def hold(model, *agents, **settings):
        auction = AuctionRunnable(model=model, agents=agents, seed=3, **settings)
        return auction.run("Hi") if waiting == "blocking" else asyncio.run(auction.arun("Hi"))

    return hold


def scored(waiting, reward, prompt):
    return reward.score(prompt, REPLIES) if waiting == "blocking" else asyncio.run(reward.ascore(prompt, REPLIES))


@pytest.mark.parametrize("value", [1.0, 0.5, -2.0, 0.0])
def test_amounts_are_value_times_the_log_ratio(waiting, value):
    reward = LogRatioReward("Praise b.", value, scorer=MODEL)
    assert scored(waiting, reward, PROMPT) == pytest.approx(value * log_ratios(PRAISES_B))


def test_instructions_stand_at_the_end_of_the_system_message_and_the_reference_keeps_its_own(waiting):
    platform = SystemMessage("Never a.")
    amounts = scored(waiting, LogRatioReward("Praise b.", scorer=MODEL), [platform, *PROMPT])
    assert amounts == pytest.approx(log_ratios(PRAISES_B, before=[platform]))
    assert amounts != pytest.approx(log_ratios(PRAISES_B))


def test_an_auction_is_the_scorer_of_log_ratios_that_bring_none(hold):
    result = hold(MODEL, Agent("B", LogRatioReward("Praise b.", 2.0)), Agent("C", LogRatioReward("Praise c.")))
    replies = [candidate.message for candidate in result.candidates]
    assert len(replies) > 4
    assert result.rewards == pytest.approx(
        np.array([2 * log_ratios(PRAISES_B, replies), log_ratios(PRAISES_C, replies)])
    )


def test_all_agents_of_one_scorer_are_one_call(hold):
    model = Counting(tilts=TILTS)
    agents = [
        Agent("B", LogRatioReward("Praise b.")),
        Agent("C", LogRatioReward("Praise c.") * 2 + MentionReward(["c"])),
        Agent("again", LogRatioReward("Praise b.", 3.0)),
        Agent("clicks", ClickReward(2.0, 0.5 + 0.1 * LogRatioReward("Never a."))),
        GOOD,
    ]
    result = hold(model, *agents)
    assert [report.status for report in result.reports] == ["reported"] * 5
    assert model._asked == [1 + 3], "the reference, and each distinct text of instructions"
    replies = [candidate.message for candidate in result.candidates]
    mentions = np.array(MentionReward(["c"]).score(PROMPT, replies))
    told = [SystemMessage("Never a.")]
    expected = [
        log_ratios(PRAISES_B, replies),
        2 * log_ratios(PRAISES_C, replies) + mentions,
        3 * log_ratios(PRAISES_B, replies),
        2 * (0.5 + 0.1 * log_ratios(told, replies)),
    ]
    assert result.rewards[:4] == pytest.approx(np.array(expected))
    assert result.reports[3].click_through == pytest.approx(0.5 + 0.1 * log_ratios(told, replies))


def test_agents_of_another_scorer_are_another_call(ask):
    own, others = Counting(tilts=TILTS), Counting(tilts=TILTS)
    shared = LogRatioReward("Praise b.", scorer=own)
    reports = ask(
        Agent("A", shared), Agent("B", shared), Agent("C", LogRatioReward("Praise c.", scorer=own)),
        Agent("D", LogRatioReward("Praise c.")), scorer=others,
    )  # fmt: skip
    assert (own._asked, others._asked) == ([3], [2])
    for report, told in zip(reports, [PRAISES_B, PRAISES_B, PRAISES_C, PRAISES_C], strict=True):
        assert report.rewards == pytest.approx(log_ratios(told))


def test_the_auctions_law_goes_to_its_own_scorer_alone(ask):
    laws = []

    class Lawful:
        def score(self, prompt, replies, **law):
            laws.append(law)
            return MODEL.score(prompt, replies)

    auctions = Lawful()
    ratios = [LogRatioReward("Praise b."), LogRatioReward("Praise b.", scorer=auctions)]
    ask(*(Agent(str(k), ratio) for k, ratio in enumerate(ratios)), scorer=auctions, law={"temperature": 0.5})
    assert laws == [{"temperature": 0.5}] * 2
    laws.clear()
    ask(Agent("own", LogRatioReward("Praise b.", scorer=Lawful())), scorer=auctions, law={"temperature": 0.5})
    assert laws == [{}] * 2


def test_prompts_are_scored_side_by_side_where_they_cannot_be_together(ask):
    everybody = threading.Barrier(3)  # the reference and two agents

    class AtAServer:
        def score(self, prompt, replies):
            everybody.wait(10)
            return MODEL.score(prompt, replies)

    first, second = ask(
        Agent("B", LogRatioReward("Praise b.")), Agent("C", LogRatioReward("Praise c.")), scorer=AtAServer()
    )
    assert first.rewards == pytest.approx(log_ratios(PRAISES_B))
    assert second.rewards == pytest.approx(log_ratios(PRAISES_C))


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_the_reply_follows_the_reference_times_every_agents_ratio(tau):
    """The law: pi_ref * prod_i (pi_i / pi_ref) ** (1 / tau), over all replies and over any set of candidates."""
    ratios = [LogRatioReward("Praise b.", scorer=MODEL), LogRatioReward("Praise c.", scorer=MODEL)]
    reference = np.array(list(LAW.values()))
    target = reference + (log_ratios(PRAISES_B) + log_ratios(PRAISES_C)) / tau
    for candidates in ([*range(9)], [0, 3, 4, 8]):
        replies = [REPLIES[j] for j in candidates]
        rewards = [ratio.score(PROMPT, replies) for ratio in ratios]
        law = settle(rewards, reference[candidates], tau=tau, seed=1).probabilities
        exact = np.exp(target[candidates])
        assert law == pytest.approx(exact / exact.sum())


def test_an_auctions_candidates_follow_that_law_too(hold):
    tau = 0.5
    agents = [Agent("B", LogRatioReward("Praise b.")), Agent("C", LogRatioReward("Praise c."))]
    result = hold(MODEL, *agents, tau=tau, n_candidates=200)
    replies = [candidate.message for candidate in result.candidates]
    draws = np.array([candidate.draws for candidate in result.candidates])
    exact = draws * np.exp((log_ratios(PRAISES_B, replies) + log_ratios(PRAISES_C, replies)) / tau)
    assert result.settlement.probabilities == pytest.approx(exact / exact.sum())


def test_without_a_model_that_scores_every_such_agent_is_told_what_to_do(hold):
    mute = RunnableLambda(lambda messages: AIMessage("b"))
    agents = [Agent(text, LogRatioReward(text)) for text in TILTS]
    *reports, good = hold(mute, *agents, GOOD, n_candidates=2).reports
    for report in reports:
        assert (report.status, set(report.rewards)) == ("error", {0.0})
        assert report.reason.endswith("give the auction a scorer, or LogRatioReward(..., scorer=...).")
    assert good.status == "reported"


def scorer_of(kind, row):
    """Return a scorer with one verb beside `score`, all of them saying `row(prompt, replies)`."""

    class Plain:
        def score(self, prompt, replies):
            return row(prompt, replies)

    class Awaited(Plain):
        async def ascore(self, prompt, replies):
            return row(prompt, replies)

    class Together(Plain):
        def score_conditions(self, conditions, replies, *, wanted):
            return [row(condition.prompts[0], replies) for condition in conditions]

    class AwaitedTogether(Together):
        async def ascore_conditions(self, conditions, replies, *, wanted):
            return self.score_conditions(conditions, replies, wanted=wanted)

    return {"score": Plain, "ascore": Awaited, "conditions": Together, "aconditions": AwaitedTogether}[kind]()


KINDS = ["score", "ascore", "conditions", "aconditions"]


def failing(error):
    def row(prompt, replies):
        raise error

    return row


def silent_about(told):
    """Return a row that is impossible under prompts that are told so, and likely under the others."""
    return lambda prompt, replies: [-np.inf if (len(prompt) > 1) == told else -1.0] * len(replies)


BROKEN = {
    "raises": (failing(OSError("no route")), "error", "OSError"),
    "is late": (failing(TimeoutError("3 s")), "timeout", "TimeoutError"),
    "exits": (lambda prompt, replies: sys.exit("bye"), "error", "SystemExit"),
    "cancels": (failing(asyncio.CancelledError()), "error", "CancelledError"),
    "is not done": (failing(BaseException("odd")), "error", "BaseException"),
    "returns too few": (lambda prompt, replies: [-1.0], "error", "shape (1,) for 9 replies"),
    "returns a table": (lambda prompt, replies: [[-1.0] * 9], "error", "shape (1, 9) for 9 replies"),
    "returns nothing": (lambda prompt, replies: None, "error", "for 9 replies"),
    "returns words": (lambda prompt, replies: ["much"] * 9, "error", "return one log-probability per reply"),
    "returns nan": (lambda prompt, replies: [float("nan")] * 9, "error", "at most 0, in nats"),
    "returns probabilities": (lambda prompt, replies: [0.25] * 9, "error", "at most 0, in nats"),
    "has no reference": (silent_about(told=False), "invalid", "a reply is impossible under the reference"),
    "has no agent": (silent_about(told=True), "invalid", "a reply is impossible under the agent's instructions"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", BROKEN)
def test_who_has_a_broken_scorer_abstains_and_nobody_else(ask, kind, case):
    row, status, reason = BROKEN[case]
    broken = scorer_of(kind, row)
    agents = [Agent(text, LogRatioReward(text, scorer=broken)) for text in ("Praise b.", "Praise c.")]
    *reports, fine, good = ask(*agents, Agent("fine", LogRatioReward("Praise b.")), GOOD, scorer=MODEL)
    for report in reports:
        assert (report.status, set(report.rewards)) == (status, {0.0})
        assert reason in report.reason
    assert fine.rewards == pytest.approx(log_ratios(PRAISES_B))
    assert good.status == "reported"


@pytest.mark.parametrize("rows", [[[-1.0] * 9], None, []])
def test_a_scorer_that_answers_for_other_prompts_is_refused(ask, rows):
    class Short:
        def score(self, prompt, replies):
            raise AssertionError

        def score_conditions(self, conditions, replies, *, wanted):
            return rows if len(conditions) > 1 else []

    (report,) = ask(Agent("A", LogRatioReward("Praise b.")), scorer=Short())
    assert report.status == "error"
    assert "Short returned 0 rows for 1 prompts; return one per prompt" in report.reason


@pytest.mark.parametrize("kind", KINDS)
def test_instructions_that_cannot_be_read_spoil_nobody_elses_amounts(ask, kind):
    def row(prompt, replies):
        if "much too long" in prompt[0].text:
            raise ContextWindowError("shorten the prompt")
        return MODEL.score(prompt, replies)

    agents = [Agent(text, LogRatioReward(text)) for text in ("Praise b.", "much too long", "Praise c.")]
    first, long, last = ask(*agents, scorer=scorer_of(kind, row))
    assert (long.status, long.reason) == ("error", "ContextWindowError")
    assert first.rewards == pytest.approx(log_ratios(PRAISES_B))
    assert last.rewards == pytest.approx(log_ratios(PRAISES_C))


@pytest.mark.parametrize("kind", KINDS)
def test_a_scorer_that_an_agent_brings_cannot_change_the_candidates(hold, kind):
    def row(prompt, replies):
        prompt[-1].content = "changed"
        for reply in replies:
            reply.content = "changed"
            reply.response_metadata.clear()
        return [-1.0] * len(replies)

    result = hold(MODEL, Agent("A", LogRatioReward("Praise b.", scorer=scorer_of(kind, row))), GOOD)
    assert result.reports[0].status == "reported"
    assert {candidate.message.text for candidate in result.candidates} <= set(LAW)
    assert result.prompt[-1].text == "Hi"
    assert result.candidates[0].message.response_metadata["model_name"] == "markov"


class CancelsItself(Reward):
    """Cancels the task that it is asked in, once."""

    awaits = True

    def score(self, prompt, replies):
        return [0.0] * len(replies)

    async def ascore(self, prompt, replies):
        asyncio.current_task().cancel()
        return self.score(prompt, replies)


async def test_an_agent_that_cancels_itself_takes_nobody_elses_scores_away():
    agents = [Agent("bad", CancelsItself() + LogRatioReward("Praise c.")), Agent("B", LogRatioReward("Praise b."))]
    bad, report = await collect(agents, PROMPT, REPLIES, Terms(scorer=MODEL), waiter=AWAITING)
    assert (bad.status, bad.reason) == ("error", "CancelledError")
    assert report.rewards == pytest.approx(log_ratios(PRAISES_B))


@pytest.fixture
def gate():
    """What hanging scorers wait for; opened when the test is over, so that their threads end."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.mark.parametrize("kind", ["score", "conditions"])
def test_who_has_a_late_scorer_is_late_and_the_others_are_settled(ask, kind, gate):
    late = scorer_of(kind, lambda prompt, replies: gate.wait() and [-1.0] * len(replies))
    agents = [Agent(text, LogRatioReward(text, scorer=late)) for text in ("Praise b.", "Praise c.")]
    *reports, fine, good = ask(*agents, Agent("B", LogRatioReward("Praise b.")), GOOD, scorer=MODEL, timeout=0.5)
    for report in reports:
        assert (report.status, report.reason) == ("timeout", "did not report within 0.5 s")
    assert fine.rewards == pytest.approx(log_ratios(PRAISES_B))
    assert good.status == "reported"


@pytest.mark.parametrize("verb", ["ascore", "ascore_conditions"])
async def test_what_nobody_awaits_any_more_is_cancelled(verb):
    calls = 1 if verb == "ascore_conditions" else 3  # at a server, one for each prompt
    ended = asyncio.Semaphore(0)

    async def waits(*_, **__):
        try:
            await asyncio.sleep(600)
        finally:
            ended.release()

    late = type("Late", (), {"score": lambda *_: [], verb: waits})()
    agents = [Agent(text, LogRatioReward(text)) for text in ("Praise b.", "Praise c.")]
    reports = await collect([*agents, GOOD], PROMPT, REPLIES, Terms(scorer=late, timeout=0.5), waiter=AWAITING)
    assert [report.status for report in reports] == ["timeout", "timeout", "reported"]
    async with asyncio.timeout(10):
        for _ in range(calls):
            await ended.acquire()


class Stoppable:
    """A scorer that computes until it is told to stop."""

    def __init__(self):
        self.began, self.stopped = threading.Event(), threading.Event()

    def score(self, prompt, replies):
        raise AssertionError

    def score_conditions(self, conditions, replies, *, wanted, cancel=None):
        self.began.set()
        assert cancel.wait(20)
        self.stopped.set()
        raise InterruptedError


async def test_a_scorer_in_a_thread_is_told_to_stop_where_it_can_be():
    scorer = Stoppable()
    agents = [Agent(text, LogRatioReward(text)) for text in ("Praise b.", "Praise c.")]
    reports = await collect(agents, PROMPT, REPLIES, Terms(scorer=scorer, timeout=0.5), waiter=AWAITING)
    assert [report.status for report in reports] == ["timeout", "timeout"]
    assert await asyncio.to_thread(scorer.stopped.wait, 10)


def test_a_group_that_is_stopped_gives_up_what_it_computes():
    scorer, heard = Stoppable(), []
    reward = LogRatioReward("Praise b.")
    group = groups_by_reward([[reward]], PROMPT, REPLIES, scorer=scorer)[reward]

    def hear():
        with pytest.raises(InterruptedError):
            run(group.amounts(reward, BLOCKING))
        heard.append(True)

    thread = threading.Thread(target=hear, daemon=True)
    thread.start()
    assert scorer.began.wait(10)
    assert not scorer.stopped.is_set()
    group.stop()
    thread.join(10)
    assert heard


@pytest.mark.parametrize("settings", [
    {"instructions": ""}, {"instructions": " \n"}, {"instructions": None}, {"instructions": ["Praise b."]},
    {"instructions": "Praise b.", "value": float("nan")}, {"instructions": "Praise b.", "value": True},
    {"instructions": "Praise b.", "value": "1"}, {"instructions": "Praise b.", "scorer": object()},
    {"instructions": "Praise b.", "scorer": "gpt"},
])  # fmt: skip
def test_a_setting_that_cannot_be_scored_is_refused(settings):
    with pytest.raises(ConfigurationError, match=r"instructions|value|scorer"):
        LogRatioReward(**settings)


class Waits:
    """Scores short instructions at once, and long ones not before the gate opens."""

    def __init__(self):
        self.gate, self.calls = threading.Event(), []

    def score(self, prompt, replies):
        return MODEL.score(prompt, replies)

    def score_conditions(self, conditions, replies, *, wanted):
        lengths = [len(condition.prompts[0][0].text) for condition in conditions]
        self.calls.append(len(lengths))
        if max(lengths) > 500:
            self.gate.wait(30)
        return [self.score(condition.prompts[0], replies) for condition in conditions]


def test_long_instructions_delay_no_report_of_short_ones(ask):
    long = [Agent(f"long {k}", LogRatioReward(f"{k} " + "very " * 400)) for k in range(4)]
    short = [Agent("B", LogRatioReward("Praise b.")), Agent("C", LogRatioReward("Praise c."))]

    def check(agents):
        model = Waits()
        reports = dict(zip([agent.name for agent in agents], ask(*agents, scorer=model, timeout=2.0), strict=True))
        model.gate.set()
        assert [reports[agent.name].status for agent in long] == ["timeout"] * 4
        assert reports["B"].rewards == pytest.approx(log_ratios(PRAISES_B))
        assert reports["C"].rewards == pytest.approx(log_ratios(PRAISES_C))
        assert model.calls == [3, 4]

    with ThreadPoolExecutor(2) as pool:  # both wait for the deadline
        assert list(pool.map(check, ([*long, *short], [*short, *long]))) == [None, None]


def test_an_agent_of_many_instructions_is_scored_behind_those_of_few(ask):
    model = Waits()
    model.gate.set()
    many = sum((LogRatioReward(f"{k} is praised.") for k in range(60)), LogRatioReward("Praise c."))
    reports = ask(Agent("many", many), Agent("few", LogRatioReward("Praise b.")), scorer=model)
    assert {report.status for report in reports} == {"reported"}
    assert model.calls == [2, 61]


def test_instructions_of_all_lengths_are_scored_from_the_shortest(ask):
    model = Waits()
    model.gate.set()
    lengths = (9, 400, 600, 1100, 1500, 4000)
    reports = ask(*(Agent(str(n), LogRatioReward("x" * n)) for n in lengths[::-1]), scorer=model)
    assert {report.status for report in reports} == {"reported"}
    assert model.calls == [3, 2, 1, 1]
    with pytest.raises(ConfigurationError, match="instructions must be a text of at most 20000 characters"):
        LogRatioReward("x" * 20_001)
