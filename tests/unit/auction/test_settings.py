"""Settings: their groups, and refusals in one voice that name them."""

import ast
import inspect
import itertools
import math

import pytest
from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI
from pydantic import ValidationError

from llm_auction_chain import Agent, AuctionRunnable, ChatAuction, ConfigurationError
from llm_auction_chain.auction.settings import GROUPS, AuctionSettings
from llm_auction_chain.testing import MarkovChatModel
from tests.unit.auction.auctions import LIKES_B, auction


@pytest.mark.parametrize("settings", [
    {"policy": "rude"}, {"policy": {"fallback": 3}}, {"policy": {"exclusive_categories": "cars"}},
    {"policy": {"exclusive_categories": [""]}}, {"policy": {"candidate_filter": "rude"}},
    {"reward_timeout": 0}, {"reward_timeout": True}, {"reward_timeout": float("nan")}, {"report_cap": -1.0},
    {"billing": {"currency": 3}}, {"disclosure": 3}, {"disclosure": {"place": "middle"}},
])  # fmt: skip
def test_rules_no_auction_can_keep_are_refused(settings):
    with pytest.raises(ConfigurationError, match=_innermost_name(settings)):
        auction(**settings)


def _innermost_name(settings):
    name, value = next(iter(settings.items()))
    return (next(iter(value)) if isinstance(value, dict) else name).replace("exclusive_", "")


@pytest.mark.parametrize("settings", [
    {"tau": 0}, {"tau": -1.0}, {"tau": math.nan}, {"tau": math.inf}, {"tau": "soft"},
    {"n_candidates": 0}, {"n_candidates": "many"}, {"sampling": {"min_candidates": 0}},
    {"sampling": {"min_candidates": 5}},
    {"payment_rule": "free"}, {"on_agent_error": "ignore"}, {"agents": [Agent("A", max), Agent("A", max)]},
    {"agents": ["A"]}, {"agents": 3}, {"unknown": 1}, {"model": "gpt"}, {"seed": -1}, {"seed": True}, {"tau": True},
    {"n_candidates": True}, {"proposal": "context"}, {"sampling": {"scorer": 3}},
    {"sampling": {"min_ess": 0}}, {"sampling": {"min_ess": 17.0}},
    {"sampling": {"min_ess": 2.0, "max_candidates": 3}}, {"sampling": {"max_candidates": 8}},
    {"sampling": {"min_ess": 5.0, "max_candidates": 4}},
])  # fmt: skip
def test_settings_no_auction_can_run_with_are_refused(settings):
    with pytest.raises(ConfigurationError):
        AuctionRunnable(**{"model": MarkovChatModel(), "n_candidates": 4, **settings})


@pytest.mark.parametrize("seed", [-1, True, 1.5])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(ConfigurationError, match="seed"):
        AuctionRunnable(model=MarkovChatModel()).run("x", seed=seed)


class Scorer:
    """Says that every reply is as likely as another."""

    def score(self, prompt, replies):
        return [0.0 for _ in replies]


class Books:
    """What has the verbs of a ledger."""

    def hold(self, *args, **kwargs): ...

    charge = void = cancel = hold


def allows(prompt, reply):
    return True


def _refusal(**settings):
    with pytest.raises(ConfigurationError) as caught:
        auction(agents=[], **settings)
    return str(caught.value)


@pytest.mark.parametrize(("settings", "message"), [
    ({"n_candidates": "4"}, "n_candidates must be a whole number of at least 1, got '4'."),
    ({"n_candidates": True}, "n_candidates must be a whole number of at least 1, got True."),
    ({"n_candidates": 2.0}, "n_candidates must be a whole number of at least 1, got 2.0."),
    ({"seed": -1}, "seed must be a whole number of at least 0 and below 2**128, got -1."),
    ({"seed": 2**128}, "seed must be a whole number of at least 0 and below 2**128, got a larger number."),
    ({"reward_timeout": 0}, "reward_timeout must be a number above 0 and at most 1e+06, got 0."),
    ({"on_agent_error": "ignore"}, "on_agent_error must be 'abstain' or 'raise', got 'ignore'."),
    ({"on_tool_calls": None}, "on_tool_calls must be 'auction' or 'bypass', got None."),
    ({"on_event": "print"}, "on_event must be a function of an AuctionEvent, got 'print'."),
    ({"report_cap": "soft"}, "report_cap of the auction must be a number above 0, got 'soft'."),
    ({"model": 3}, "model must be a LangChain chat model, or the name of one such as 'openai:gpt-4o-mini', got 3."),
    ({"model": "gpt"}, (
        "model must be a LangChain chat model, or the name of one such as 'openai:gpt-4o-mini', got 'gpt'. "
        "For a model on this machine: ChatTransformers(model=...)."
    )),
    ({"sampling": {"min_candidates": 0}}, "min_candidates must be a whole number of at least 1, got 0."),
    ({"sampling": {"min_ess": 0.5}}, "min_ess must be a number of at least 1, got 0.5."),
    ({"sampling": {"max_candidates": 1.5}}, "max_candidates must be a whole number of at least 1, got 1.5."),
    ({"sampling": {"native_n": 1}}, "native_n must be True or False, got 1."),
    ({"sampling": {"scorer": 3}}, "scorer must be an object with score(prompt, replies), got 3."),
    ({"sampling": {"min_candidates": 17}}, "min_candidates must be at most n_candidates, which is 16, got 17."),
    ({"sampling": {"max_candidates": 8}}, "max_candidates must be at least n_candidates, which is 16, got 8."),
    ({"sampling": {"max_candidates": 17}},
     "max_candidates must be 16 where min_ess is not set, got 17. Only min_ess draws further rounds."),
    ({"sampling": {"min_ess": 65}}, "min_ess must be at most max_candidates, which is 64, got 65.0."),
    ({"billing": {"currency": 3}}, "currency must be a text, got 3."),
    ({"billing": {"on_error": "retry"}}, "on_error must be 'reference' or 'raise', got 'retry'."),
    ({"billing": {"ledger": 3}}, "ledger must be a Ledger, as in Ledger('sqlite:///llm_auction.db'), got 3."),
    ({"disclosure": {"place": "middle"}}, "place must be 'metadata' or 'start' or 'end', got 'middle'."),
    ({"sampling": 3}, "sampling must be Sampling(...), or its scorer, got 3."),
    ({"policy": 3}, "policy must be Policy(...), or its candidate_filter, got 3."),
    ({"billing": "sqlite://"}, "billing must be Billing(...), or its ledger, got 'sqlite://'."),
    ({"disclosure": 3}, "disclosure must be Disclosure(...), or its text, got 3."),
])  # fmt: skip
def test_a_refusal_says_what_the_setting_must_be_and_what_it_is(settings, message):
    assert _refusal(**settings) == message


@pytest.mark.parametrize("setting", ["tau", "payment_rule", "proposal"])
def test_every_refusal_names_its_setting_first(setting):
    assert _refusal(**{setting: "soft"}).startswith(f"{setting} must be ")


def test_an_auction_has_at_most_16_flat_settings():
    assert len(AuctionSettings.model_fields) <= 16


@pytest.mark.parametrize("kind", [AuctionSettings, *GROUPS.values()])
def test_every_setting_has_a_docstring(kind):
    (declared,) = ast.parse(inspect.getsource(kind)).body
    documented = {
        field.target.id
        for field, text in itertools.pairwise(declared.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and text.value.value.strip()
    }
    assert kind.model_fields.keys() - documented == set()


@pytest.mark.parametrize("interface", [AuctionRunnable, ChatAuction])
def test_both_interfaces_have_every_setting(interface):
    fields = {name: field.annotation for name, field in interface.model_fields.items()}
    assert {name: field.annotation for name, field in AuctionSettings.model_fields.items()}.items() <= fields.items()


@pytest.mark.parametrize(("group", "name", "value"), [
    ("sampling", "scorer", Scorer()), ("policy", "candidate_filter", allows),
    ("policy", "candidate_filter", RunnableLambda(lambda pair: True)),
    ("billing", "ledger", Books()), ("disclosure", "text", "Sponsored by {sponsors}."),
])  # fmt: skip
def test_a_group_takes_its_commonest_value_a_mapping_or_itself(group, name, value):
    kind = GROUPS[group]
    for setting in (value, {name: value}, kind(**{name: value})):
        taken = getattr(auction(agents=[], **{group: setting}), group)
        assert taken == kind(**{name: value})
        assert getattr(taken, name) is value


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_that_is_none_has_its_defaults(group):
    assert getattr(auction(agents=[], **{group: None}), group) == GROUPS[group]()


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_cannot_be_changed_after_it_is_made(group):
    name = next(iter(GROUPS[group].model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(GROUPS[group](), name, None)


@pytest.mark.parametrize(("settings", "hint"), [
    ({"n_candidate": 4}, "AuctionRunnable has no setting 'n_candidate'. Did you mean 'n_candidates'?"),
    ({"sampling": {"min_es": 4}}, "Sampling has no setting 'min_es'. Did you mean 'min_ess'?"),
    ({"min_ess": 4}, "AuctionRunnable has no setting 'min_ess'. Give it as sampling=Sampling(min_ess=...)."),
    ({"fallback": "x"}, "AuctionRunnable has no setting 'fallback'. Give it as policy=Policy(fallback=...)."),
    ({"ledger": None}, "AuctionRunnable has no setting 'ledger'. Give it as billing=Billing(ledger=...)."),
    ({"policy": {"currency": "EUR"}}, "Policy has no setting 'currency'. Give it as billing=Billing(currency=...)."),
    ({"disclosure": {"zzz": 1}}, "Disclosure has no setting 'zzz'. It has place, text."),
])  # fmt: skip
def test_an_unknown_setting_names_the_close_one_or_the_group_that_has_it(settings, hint):
    assert _refusal(**settings) == hint


@pytest.mark.parametrize("interface", [AuctionRunnable, ChatAuction])
def test_a_missing_model_is_named_and_no_setting_is_repeated(interface):
    with pytest.raises(ConfigurationError) as caught:
        interface(agents=[LIKES_B], billing={"currency": "EUR"})
    assert str(caught.value) == f"{interface.__name__} needs a model."


@pytest.mark.parametrize("group", GROUPS)
def test_a_mapping_whose_keys_are_no_names_is_refused(group):
    with pytest.raises(ConfigurationError, match="1: Keys should be strings, got 1"):
        auction(agents=[], **{group: {1: 2}})


@pytest.mark.parametrize("interface", [AuctionRunnable, ChatAuction])
def test_a_model_may_be_the_name_that_langchain_gives_it(interface, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk")
    model = interface(model="openai:gpt-4o-mini").model
    assert isinstance(model, ChatOpenAI)
    assert model.model_name == "gpt-4o-mini"
    monkeypatch.delenv("OPENAI_API_KEY")
    assert _refusal(model="openai:gpt-4o-mini").startswith("The model 'openai:gpt-4o-mini' could not be set up: ")
