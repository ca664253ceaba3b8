"""Laws that rewards, proposals, ledgers and scorers must obey, as test classes to inherit from.

Each law is a test method. A subclass says what is under test; pytest then runs every law on it. The classes need no
fixtures and no plugin.
"""

import asyncio
import copy
import inspect
import math
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from llm_auction_chain.candidates.logprobs import SequenceScorer
from llm_auction_chain.candidates.proposals import (
    Condition,
    Proposal,
    ProposalInputs,
    conditions_of,
    log_weights,
    stratify,
)
from llm_auction_chain.descriptions import keywords_of
from llm_auction_chain.errors import ChargeConflictError, CoverError, DeliveredError, LedgerError
from llm_auction_chain.ledger import AuctionLedger, Charge
from llm_auction_chain.testing.markov import MarkovChatModel

FloatArray = npt.NDArray[np.float64]


class RewardConformance:
    """A reward gives each reply one finite amount, whichever way it is called.

    A subclass overrides `reward`. It overrides `prompt` and `replies` where the defaults mean nothing to the reward,
    and `private` where the reward holds a secret.

    Attributes:
        tolerance: by how much an amount may differ between two calls.
        per_reply: whether a reply's amount depends on that reply alone. False for a reward that compares replies.
        copies: whether the reward can be pickled and copied. False for one that holds a connection or a large model.

    >>> from llm_auction_chain.rewards import MentionReward
    >>> class TestMine(RewardConformance):
    ...     def reward(self):
    ...         return MentionReward(phrases=["TuneTown"], value=2.0)
    >>> TestMine().test_each_reply_gets_one_finite_amount()
    """

    tolerance: float = 1e-9
    per_reply: bool = True
    copies: bool = True

    def reward(self) -> Any:
        """Return the reward under test: an object with `score(prompt, replies)`."""
        raise NotImplementedError

    def prompt(self) -> list[BaseMessage]:
        """Return a prompt."""
        return [HumanMessage("How do I learn to play the guitar?")]

    def replies(self) -> list[AIMessage]:
        """Return at least two replies with different amounts."""
        texts = ("Practise a little every day.", "TuneTown sells guitars: https://tunetown.example/start", "")
        return [AIMessage(text, id=f"reply-{k}") for k, text in enumerate(texts)]

    def private(self) -> Sequence[str]:
        """Return texts that the reward holds and that its repr must not show."""
        return ()

    def test_each_reply_gets_one_finite_amount(self) -> None:
        """There is an amount for every reply, and no amount is infinite or NaN."""
        assert np.all(np.isfinite(self._amounts(self.replies())))

    def test_amounts_lie_within_the_bounds(self) -> None:
        """A ledger holds no more than the bounds of a reward allow its agent to owe."""
        reward = self.reward()
        low, high = getattr(reward, "bounds", None) or (-math.inf, math.inf)
        amounts = self._amounts(self.replies(), reward)
        assert np.all((low <= amounts) & (amounts <= high))

    def test_no_replies_get_no_amounts(self) -> None:
        """An empty batch is legal."""
        assert len(self.reward().score(self.prompt(), [])) == 0

    def test_a_second_call_gives_the_same_amounts(self) -> None:
        """A reward keeps no state between calls that changes its amounts."""
        reward = self.reward()
        self._assert_same(self._amounts(self.replies(), reward), self._amounts(self.replies(), reward))

    def test_the_order_of_replies_does_not_matter(self) -> None:
        """Amounts follow their replies."""
        replies = self.replies()
        self._assert_same(self._amounts(replies), self._amounts(replies[::-1])[::-1])

    def test_equal_replies_get_equal_amounts(self) -> None:
        """A reply that comes twice has the same amount twice."""
        first, *_ = self.replies()
        amounts = self._amounts([first, first.model_copy(update={"id": "again"})])
        self._assert_same(amounts[:1], amounts[1:])

    def test_a_reply_alone_gets_the_amount_that_it_gets_in_a_batch(self) -> None:
        """The other candidates of an auction do not change what a reply is worth."""
        if self.per_reply:
            alone = [float(self._amounts([reply])[0]) for reply in self.replies()]
            self._assert_same(self._amounts(self.replies()), alone)

    def test_sync_and_async_give_the_same_amounts(self) -> None:
        """`ascore`, where there is one, is `score`, awaited."""
        reward = self.reward()
        if inspect.iscoroutinefunction(verb := getattr(reward, "ascore", None)):
            amounts = asyncio.run(verb(self.prompt(), self.replies()))
            self._assert_same(self._amounts(self.replies(), reward), amounts)

    def test_prompt_and_replies_stay_as_they_are(self) -> None:
        """A reward reads its arguments and changes nothing in them."""
        prompt, replies = self.prompt(), self.replies()
        before = copy.deepcopy((prompt, replies))
        self.reward().score(prompt, replies)
        assert (prompt, replies) == before

    def test_the_repr_shows_nothing_private(self) -> None:
        """A repr ends in logs and traces, which other agents may read."""
        shown = repr(self.reward())
        assert [text for text in self.private() if text in shown] == []

    def test_a_copy_gives_the_same_amounts(self) -> None:
        """A reward can travel to another process, and a deep copy of it is independent."""
        if self.copies:
            expected = self._amounts(self.replies())
            reward = self.reward()
            self._assert_same(expected, self._amounts(self.replies(), copy.deepcopy(reward)))
            self._assert_same(expected, self._amounts(self.replies(), pickle.loads(pickle.dumps(reward))))  # noqa: S301

    def _amounts(self, replies: Sequence[AIMessage], reward: Any = None) -> FloatArray:
        reward = self.reward() if reward is None else reward
        amounts = np.asarray(reward.score(self.prompt(), replies), dtype=np.float64)
        assert amounts.shape == (len(replies),), "a reward gives one amount per reply"
        return amounts

    def _assert_same(self, one: Sequence[float] | FloatArray, other: Sequence[float] | FloatArray) -> None:
        np.testing.assert_allclose(one, other, rtol=0, atol=self.tolerance)


class ProposalConformance:
    """A proposal knows the prompt, the descriptions, tau and the seed; importance weights correct for it exactly.

    A subclass overrides `proposal`. It overrides `model` or `descriptions` where the defaults mean nothing to the
    proposal. The laws draw from `MarkovChatModel`, whose probabilities are known.

    Attributes:
        tolerance: by how much a log-weight may be off, in nats.
        longest: by how many characters a condition may lengthen a prompt, however many agents there are.

    >>> from llm_auction_chain import ContextPrompt
    >>> class TestMine(ProposalConformance):
    ...     def proposal(self):
    ...         return ContextPrompt()
    >>> TestMine().test_the_order_of_descriptions_does_not_matter()
    """

    tolerance: float = 1e-9
    longest: int = 5000

    def proposal(self) -> Proposal:
        """Return the proposal under test."""
        raise NotImplementedError

    def model(self) -> MarkovChatModel:
        """Return a model whose replies depend on the descriptions."""
        return MarkovChatModel(tilts={"TuneTown": (0.0, 2.0, -1.0), "StringSchool": (1.0, 0.0, 0.5)})

    def prompt(self) -> list[BaseMessage]:
        """Return a prompt."""
        return [HumanMessage("How do I learn to play the guitar?")]

    def descriptions(self) -> list[str]:
        """Return the public descriptions of at least two agents, all different."""
        return ["StringSchool gives lessons.", "TuneTown sells guitars."]

    def test_conditions_are_well_formed(self) -> None:
        """Each condition has prompts of at least one message, each with a finite power that is not 0."""
        for condition in self._conditions()[0]:
            assert len(condition.prompts) == len(condition.powers) > 0
            assert all(len(prompt) > 0 for prompt in condition.prompts)
            assert all(math.isfinite(power) and power != 0 for power in condition.powers)

    def test_the_same_seed_gives_the_same_conditions(self) -> None:
        """Nothing but the arguments decides on the conditions."""
        for seed in (0, 7):
            self._assert_same(self._conditions(seed=seed), self._conditions(seed=seed))

    def test_the_order_of_descriptions_does_not_matter(self) -> None:
        """No agent gains by being listed first."""
        descriptions = self.descriptions()
        self._assert_same(self._conditions(descriptions), self._conditions(descriptions[::-1]))

    def test_no_agents_are_legal(self) -> None:
        """An auction without agents has conditions too."""
        assert self._conditions([])[0]

    def test_the_prompt_stays_as_it_is(self) -> None:
        """A proposal makes messages of its own and changes none of the caller's."""
        prompt = self.prompt()
        before = copy.deepcopy(prompt)
        conditions_of(self.proposal(), self._inputs(prompt=prompt))
        assert prompt == before

    def test_the_context_is_bounded(self) -> None:
        """Thousands of agents do not overflow the model's context."""
        descriptions = [f"Shop {k} sells {'many ' * 70}things." for k in range(2000)]
        plain = _length(self.prompt())
        for condition in self._conditions(descriptions)[0]:
            assert max(map(_length, condition.prompts)) - plain <= self.longest

    def test_weights_follow_from_the_conditions(self) -> None:
        """A candidate's log-weight is `log pi_ref(y) - log sum_c (n_c / M) pi_c(y)`, its draws counted by stratum."""
        model, n = self.model(), 16
        result = self._auction(rewards=(1.0, 0.0), n=n)
        conditions, shares = self._conditions(seed=result.seed)
        replies = [candidate.message for candidate in result.candidates]
        scores = np.asarray(model.score_conditions(conditions, replies))
        expected = log_weights(scores, stratify(shares, n))
        actual = [candidate.log_weight for candidate in result.candidates]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=self.tolerance)

    def test_the_expected_weight_is_one(self) -> None:
        """Importance weights correct for the proposal: over all replies, `sum_y q(y) exp(lw(y)) = 1`."""
        model, n = self.model(), 16
        conditions, shares = self._conditions()
        replies = [AIMessage(text) for text in model.enumerate()]
        scores = np.asarray(model.score_conditions(conditions, replies))
        counts = np.asarray(stratify(shares, n), dtype=np.float64)
        mixture = np.exp(scores).T @ (counts / n)
        assert abs(float(mixture @ np.exp(log_weights(scores, counts))) - 1.0) <= self.tolerance

    def test_reports_change_neither_candidates_nor_weights(self) -> None:
        """No bid of an agent can change what is drawn: that is why honest bidding is its best strategy."""
        results = [self._auction(rewards=rewards) for rewards in ((0.0, 0.0), (50.0, -3.0))]
        first, second = (
            [(one.message.text, one.log_weight, one.draws, one.component) for one in result.candidates]
            for result in results
        )
        assert first == second

    def _conditions(
        self, descriptions: Sequence[str] | None = None, *, seed: int = 0
    ) -> tuple[list[Condition], list[float]]:
        return conditions_of(self.proposal(), self._inputs(descriptions, seed=seed))

    def _inputs(
        self,
        descriptions: Sequence[str] | None = None,
        *,
        prompt: Sequence[BaseMessage] | None = None,
        seed: int = 0,
    ) -> ProposalInputs:
        descriptions = self.descriptions() if descriptions is None else descriptions
        return ProposalInputs(
            prompt=tuple(self.prompt() if prompt is None else prompt),
            descriptions=tuple(descriptions),
            keywords=tuple(sorted({keywords_of(text) for text in descriptions})),
            tau=2.0,
            seed=seed,
        )

    def _auction(self, *, rewards: Sequence[float], n: int = 16) -> Any:
        from llm_auction_chain import Agent, AuctionRunnable

        agents = [
            Agent(f"agent {k}", _counts("abc"[k % 3], rewards[k % len(rewards)]), context=description)
            for k, description in enumerate(self.descriptions())
        ]
        auction = AuctionRunnable(
            model=self.model(), agents=agents, proposal=self.proposal(), n_candidates=n, tau=2.0, seed=7
        )
        return auction.run(self.prompt())

    @staticmethod
    def _assert_same(one: tuple[list[Condition], list[float]], other: tuple[list[Condition], list[float]]) -> None:
        assert one[1] == other[1]
        assert all(left.same_law(right) for left, right in zip(one[0], other[0], strict=True))


def _counts(letter: str, amount: float) -> Callable[[Sequence[BaseMessage], AIMessage], float]:
    """Return a reward: an amount for each time that a letter occurs."""
    return lambda prompt, reply: amount * reply.text.count(letter)  # noqa: ARG005


def _length(prompt: Sequence[BaseMessage]) -> int:
    return sum(len(message.text) for message in prompt)


class ScorerConformance:
    """The probabilities of all replies sum to one, and are those with which replies are drawn.

    A subclass overrides `scorer`, `prompts`, `every_reply` and `draw`, over a model small enough to enumerate.

    Attributes:
        tolerance: by how much a log-probability may be off, in nats.
        draws: how many replies the statistical law draws. A correct scorer fails it with probability 1e-6.

    >>> class TestMine(ScorerConformance):
    ...     def scorer(self):
    ...         return MarkovChatModel()
    ...     def prompts(self):
    ...         return [HumanMessage("Hi")], [HumanMessage("Hello")]
    ...     def every_reply(self):
    ...         return [AIMessage(text) for text in MarkovChatModel().enumerate()]
    ...     def draw(self, prompt, n):
    ...         return [one.message for one in MarkovChatModel().generate([prompt], n=n, seed=1).generations[0]]
    >>> TestMine().test_log_probabilities_of_all_replies_sum_to_one()
    """

    tolerance: float = 1e-6
    draws: int = 2000

    def scorer(self) -> SequenceScorer:
        """Return the scorer under test."""
        raise NotImplementedError

    def prompts(self) -> tuple[list[BaseMessage], list[BaseMessage]]:
        """Return two prompts."""
        raise NotImplementedError

    def every_reply(self) -> list[AIMessage]:
        """Return all replies that the model can give to either prompt, with the metadata that the scorer reads."""
        raise NotImplementedError

    def draw(self, prompt: list[BaseMessage], n: int) -> list[AIMessage]:
        """Return n independent replies of the model, as the auction draws them."""
        raise NotImplementedError

    def test_log_probabilities_of_all_replies_sum_to_one(self) -> None:
        """No probability is missing and none is counted twice, under either prompt."""
        for prompt in self.prompts():
            scores = self._scores(prompt, self.every_reply())
            assert abs(math.log(math.fsum(np.exp(scores)))) <= self.tolerance

    def test_log_probabilities_agree_with_the_frequencies_of_draws(self) -> None:
        """Replies are drawn as often as they are likely: Hoeffding's bound for each, summed over all of them."""
        prompt, replies = self.prompts()[0], self.every_reply()
        probabilities = dict(zip(map(self._key, replies), np.exp(self._scores(prompt, replies)), strict=True))
        assert len(probabilities) == len(replies), "every_reply holds a reply twice"
        counts = Counter(map(self._key, self.draw(prompt, self.draws)))
        assert set(counts) <= set(probabilities), "a reply was drawn that every_reply does not hold"
        bound = math.sqrt(math.log(2 * len(probabilities) / 1e-6) / (2 * self.draws))
        for key, probability in probabilities.items():
            assert abs(counts[key] / self.draws - probability) <= bound, key

    def test_a_batch_is_scored_as_each_reply_alone(self) -> None:
        """The other replies of a batch do not change a score."""
        prompt, replies = self.prompts()[1], self.every_reply()[:8]
        alone = [self._scores(prompt, [reply])[0] for reply in replies]
        np.testing.assert_allclose(self._scores(prompt, replies), alone, rtol=0, atol=self.tolerance)

    def test_the_order_of_replies_does_not_matter(self) -> None:
        """Scores follow their replies."""
        prompt, replies = self.prompts()[0], self.every_reply()
        backwards = self._scores(prompt, replies[::-1])[::-1]
        np.testing.assert_allclose(self._scores(prompt, replies), backwards, rtol=0, atol=self.tolerance)

    def test_no_replies_have_no_scores(self) -> None:
        """An empty batch is legal."""
        assert len(self.scorer().score(self.prompts()[0], [])) == 0

    def test_equal_replies_have_equal_scores(self) -> None:
        """A reply that comes twice has the same score twice."""
        first = self.every_reply()[0]
        scores = self._scores(self.prompts()[0], [first, first])
        np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=self.tolerance)

    def test_sync_and_async_give_the_same_scores(self) -> None:
        """`ascore`, where there is one, is `score`, awaited."""
        prompt, replies = self.prompts()[0], self.every_reply()
        if inspect.iscoroutinefunction(verb := getattr(self.scorer(), "ascore", None)):
            scores = np.asarray(asyncio.run(verb(prompt, replies)), dtype=np.float64)
            np.testing.assert_allclose(scores, self._scores(prompt, replies), rtol=0, atol=self.tolerance)

    def _scores(self, prompt: list[BaseMessage], replies: Sequence[AIMessage]) -> FloatArray:
        scores = np.asarray(self.scorer().score(prompt, replies), dtype=np.float64)
        assert scores.shape == (len(replies),)
        assert np.all(scores <= self.tolerance), "a log-probability is at most 0"
        return scores

    @staticmethod
    def _key(reply: AIMessage) -> object:
        """Return the reply's tokens where they are known, else its text."""
        logprobs = reply.response_metadata.get("logprobs")
        ids = logprobs.get("token_ids") if isinstance(logprobs, dict) else None
        return tuple(ids) if ids is not None else str(reply.text)


class LedgerConformance:
    """A ledger books each request once, charges nothing without cover, and refuses requests that contradict.

    A ledger's test class inherits this one and overrides `ledger` and `account`. It needs no fixtures and no plugin.

    Attributes:
        deposits: what owners have paid in before each test; every other account is empty.

    >>> from llm_auction_chain import Ledger
    >>> class TestMine(LedgerConformance):
    ...     def ledger(self):
    ...         ledger = Ledger("sqlite://")
    ...         for owner, amount in self.deposits.items():
    ...             _ = ledger.deposit(owner, amount)
    ...         return ledger
    ...     def account(self, ledger, owner):
    ...         account = ledger.balance(owner)
    ...         return account.balance, account.held
    >>> TestMine().test_a_repeated_charge_is_booked_once()
    """

    deposits: ClassVar[dict[str, Decimal]] = {"A": Decimal(100), "B": Decimal(50)}

    def ledger(self) -> Any:
        """Return a new `AuctionLedger` with the deposits."""
        raise NotImplementedError

    def account(self, ledger: Any, owner: str) -> tuple[Decimal, Decimal]:
        """Return an owner's balance and what is held of it."""
        raise NotImplementedError

    def test_it_has_what_an_auction_needs(self) -> None:
        """It has every member of the protocol, and holds last for some time."""
        ledger = self.ledger()
        assert isinstance(ledger, AuctionLedger)
        assert ledger.hold_for.total_seconds() > 0

    def test_a_hold_sets_money_aside_and_leaves_out_owners_without_cover(self) -> None:
        """Held money stays the owner's, and covers no second hold."""
        ledger = self.ledger()
        hold = ledger.hold("x", {"A": Decimal(60), "B": Decimal(60), "C": Decimal(1)})
        assert (dict(hold.amounts), set(hold.without_cover)) == ({"A": 60}, {"B", "C"})
        assert self._accounts(ledger) == [(100, 60), (50, 0), (0, 0)]
        assert ledger.hold("y", {"A": Decimal(41)}).without_cover == ("A",)
        assert ledger.hold("z", {"A": Decimal(40)}).without_cover == ()

    def test_a_repeated_hold_is_booked_once(self) -> None:
        """It returns the first hold, also after the charge; equal amounts are equal however they are written."""
        ledger = self.ledger()
        first = ledger.hold("x", {"A": Decimal(60), "B": Decimal(1)})
        assert ledger.hold("x", {"B": Decimal("1.00"), "A": Decimal(60)}) == first
        assert self._accounts(ledger) == [(100, 60), (50, 1), (0, 0)]
        ledger.charge("x", {"A": Decimal(5)})
        assert ledger.hold("x", {"A": Decimal(60), "B": Decimal(1)}) == first
        assert self._accounts(ledger) == [(95, 0), (50, 0), (0, 0)]

    def test_a_repeated_charge_is_booked_once(self) -> None:
        """It returns the first charge, whichever receipt comes with it."""
        ledger = self.ledger()
        ledger.hold("x", {"A": Decimal(60)})
        first = self._charge(ledger, "x", "first")
        assert self._charge(ledger, "x", "second") == first
        assert (first.total, first.receipt) == (Decimal(5), "first")
        assert self._accounts(ledger) == [(95, 0), (50, 0), (0, 0)]

    def test_a_request_that_contradicts_an_earlier_one_is_refused(self) -> None:
        """One id stands for one hold and one charge. After the charge, another outcome is a `DeliveredError`."""
        ledger = self.ledger()
        ledger.hold("x", {"A": Decimal(60)})
        self._refuses(ChargeConflictError, lambda: ledger.hold("x", {"A": Decimal(61)}))
        self._refuses(ChargeConflictError, lambda: ledger.charge("x", {"A": Decimal(5)}, currency="other"))
        ledger.charge("x", {"A": Decimal(5)}, reply="reply")
        self._refuses(DeliveredError, lambda: ledger.hold("x", {"A": Decimal(61)}))
        self._refuses(DeliveredError, lambda: ledger.charge("x", {"A": Decimal(6)}, reply="reply"))
        self._refuses(DeliveredError, lambda: ledger.charge("x", {"A": Decimal(5)}, reply="other"))
        self._refuses(ChargeConflictError, lambda: ledger.void("x"))
        assert self._accounts(ledger) == [(95, 0), (50, 0), (0, 0)]

    def test_a_charge_beyond_its_cover_changes_nothing(self) -> None:
        """All owners are charged or none: within the hold, or without one within the accounts."""
        ledger = self.ledger()
        ledger.hold("x", {"A": Decimal(60), "B": Decimal(10)})
        self._refuses(CoverError, lambda: ledger.charge("x", {"A": Decimal(1), "B": Decimal(11)}))
        self._refuses(CoverError, lambda: ledger.charge("x", {"A": Decimal(1), "C": Decimal(0)}))
        self._refuses(CoverError, lambda: ledger.charge("y", {"A": Decimal(1), "C": Decimal(1)}))
        assert self._accounts(ledger) == [(100, 60), (50, 10), (0, 0)]

    def test_accounts_and_charges_sum_to_the_deposits(self) -> None:
        """No money appears or disappears, whichever way a charge goes."""
        ledger = self.ledger()
        ledger.hold("x", {"A": Decimal(60), "B": Decimal(10)})
        charge = ledger.charge("x", {"A": Decimal("7.125"), "B": Decimal("-2.5")})
        balances = sum(balance for balance, _ in self._accounts(ledger))
        assert balances + charge.total == sum(self.deposits.values())
        exact = {line.owner: line.amount + line.residual for line in charge.lines}
        assert exact == {"A": Decimal("7.125"), "B": Decimal("-2.5")}

    def test_a_void_releases_the_hold_and_may_be_repeated(self) -> None:
        """A late charge is refused; the same hold may be made again and has the same nonce."""
        ledger = self.ledger()
        first = ledger.hold("x", {"A": Decimal(60)})
        for _ in range(2):
            ledger.void("x", reason="it failed")
        assert self._accounts(ledger) == [(100, 0), (50, 0), (0, 0)]
        self._refuses(ChargeConflictError, lambda: ledger.charge("x", {"A": Decimal(5)}))
        again = ledger.hold("x", {"A": Decimal(60)})
        assert (again.amounts, again.nonce) == (first.amounts, first.nonce)
        assert self._charge(ledger, "x", "receipt").total == Decimal(5)

    def test_a_cancellation_is_final_and_may_be_repeated(self) -> None:
        """It releases a hold and gives back a charge, and the auction stays closed."""
        ledger = self.ledger()
        for auction in ("held", "charged"):
            ledger.hold(auction, {"A": Decimal(10)})
        self._charge(ledger, "charged", "receipt")
        for auction in ("held", "charged", "unknown"):
            for _ in range(2):
                ledger.cancel(auction, reason="it failed")
            self._refuses(ChargeConflictError, partial(ledger.hold, auction, {"A": Decimal(10)}))
            self._refuses(ChargeConflictError, partial(self._charge, ledger, auction, "receipt"))
        assert self._accounts(ledger) == [(100, 0), (50, 0), (0, 0)]

    def test_a_charge_stands_as_long_as_one_call_delivers_on_it(self) -> None:
        """Calls under one id share its charge; the last that fails gives it back."""
        ledger = self.ledger()
        ledger.hold("x", {"A": Decimal(10)})
        for receipt in ("first", "second"):
            self._charge(ledger, "x", receipt)
        for receipt in ("first", "first", "of no call"):
            ledger.cancel("x", receipt=receipt)
        assert self._accounts(ledger) == [(95, 0), (50, 0), (0, 0)]
        ledger.cancel("x", receipt="second")
        assert self._accounts(ledger) == [(100, 0), (50, 0), (0, 0)]

    def _accounts(self, ledger: AuctionLedger) -> list[tuple[Any, Any]]:
        return [self.account(ledger, owner) for owner in ("A", "B", "C")]

    @staticmethod
    def _charge(ledger: AuctionLedger, auction_id: str, receipt: str) -> Charge:
        return ledger.charge(auction_id, {"A": Decimal(5)}, receipt={"digest": receipt})

    @staticmethod
    def _refuses(error: type[LedgerError], request: Callable[[], object]) -> None:
        try:
            request()
        except error:
            return
        raise AssertionError(f"It must raise {error.__name__}.")
