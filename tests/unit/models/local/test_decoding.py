"""A reply follows its own law, whatever rows stand beside it and whenever they leave."""

import math

import pytest

from llm_auction_chain.models.local.engine import Drawing
from llm_auction_chain.models.local.passes import Passes
from llm_auction_chain.models.local.sampler import Sampler
from tests.tiny import draw, full_log_prob


def test_log_prob_agrees_when_rows_leave_early(tiny, monkeypatch):
    # A fifth of the vocabulary ends a reply, so that rows leave the batch at different times.
    monkeypatch.setattr(tiny, "ends", set(range(0, 49152, 5)))
    replies = draw(tiny, [3, 4, 6], 12, seed=0, max_tokens=10)
    lengths = [len(reply.token_ids) for reply in replies]
    assert len(set(lengths)) > 3
    for reply in replies:
        assert sum(reply.log_probs) == pytest.approx(full_log_prob(tiny, [3, 4, 6], reply), abs=1e-3)
        assert (reply.token_ids[-1] % 5 == 0) == (reply.finish_reason == "stop")
        assert all(token % 5 for token in reply.token_ids[:-1])


def test_an_end_token_is_counted_and_not_shown(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "ends", set(range(49152)))
    (reply,) = draw(tiny, [3], 1, seed=0, max_tokens=10)
    assert (len(reply.token_ids), reply.text, reply.finish_reason) == (1, "", "stop")


@pytest.mark.parametrize("rows", [1, 3])
def test_drawing_in_several_chunks_changes_no_reply(tiny, monkeypatch, rows):
    conditions = [Drawing([[3, 4]], [1.0], 5), Drawing([[3, 4], [9]], [0.5, 0.5], 4)]
    options = {"seed": 4, "max_tokens": 5, "sampler": Sampler()}
    whole = tiny.sample(conditions, **options)
    monkeypatch.setattr(Passes, "rows", property(lambda passes: rows))
    assert [reply.token_ids for reply in tiny.sample(conditions, **options)] == [reply.token_ids for reply in whole]


def test_conditions_draw_their_own_rows_whatever_stands_beside_them(tiny):
    options = {"seed": 4, "max_tokens": 6, "sampler": Sampler()}
    both = tiny.sample([Drawing([[3, 4]], [1.0], 2), Drawing([[3, 4], [9]], [0.5, 0.5], 3)], **options)
    alone = tiny.sample([Drawing([[3, 4]], [1.0], 2)], **options)
    for one, other in zip(alone, both[:2], strict=True):
        assert (one.token_ids, one.log_probs) == (other.token_ids, other.log_probs)
    assert len(both) == 5


def test_a_prompt_at_another_power_says_nothing_of_the_prompt_alone(tiny):
    conditions = [Drawing([[3, 4]], [2.0], 3), Drawing([[3, 4]], [1.0], 0)]
    for reply in tiny.sample(conditions, seed=1, max_tokens=4, sampler=Sampler()):
        assert reply.totals[0] == pytest.approx(sum(reply.log_probs))
        assert math.isnan(reply.totals[1])
