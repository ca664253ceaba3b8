"""What the playground shows of an auction: words for each number, and no markup of others."""

import json

import pytest

from llm_auction_chain import Agent, AuctionRunnable
from llm_auction_chain.receipts import verify
from llm_auction_chain.server.page_html import about_others, bar, links, verification_html, what_if_html
from llm_auction_chain.server.what_if import what_if
from llm_auction_chain.testing import MarkovChatModel


def auction_of(name, **settings):
    agent = Agent(name, lambda prompt, reply: 2.0 * reply.text.count("b"))
    return AuctionRunnable(model=MarkovChatModel(), agents=[agent], **settings)


def test_texts_of_others_are_escaped_and_amounts_have_words():
    result = auction_of("<b>", seed=7).run("Say something")
    text = what_if_html(result, what_if(result, tau=1.0, liar="<b>", factor=2.0))
    assert "<b>" not in text
    assert "&lt;b&gt;" in text
    assert "the lie loses" in text
    assert 'role="img" aria-label="Expected utility of &lt;b&gt;' in text


def test_a_probability_has_a_bar_and_words():
    assert "less than 0.1 %" in bar(1e-9)
    assert ">0.0 %<" in bar(0.0)
    assert 'style="width:25.00%"' in bar(0.25, 0.5)
    assert 'style="left:50.00%"' in bar(0.25, 0.5)


def test_a_verification_names_what_differs_and_counts_the_rest():
    receipt = auction_of("B", seed=7).run("Say something").receipt.as_dict()
    assert "Valid" in verification_html(json.dumps(receipt))
    changed = json.dumps({**receipt, "seed": "8", "tau": 3.0})
    verification, text = verify(changed), verification_html(changed, "<tau>")
    shown = text.count("<li>") - ("more</li>" in text)
    assert shown == min(8, len(verification.differences))
    assert ("more</li>" in text) == (len(verification.differences) + verification.more > 8)
    assert "Changed &lt;tau&gt;." in text


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"digest": 1', "<b>"])
def test_a_text_that_is_no_receipt_is_told_what_one_is(text):
    message = "This is no receipt: it must be the whole JSON text"
    assert message in verification_html(text)
    assert verification_html(text, "Nothing") == verification_html(text)


def test_the_link_is_followed_by_words_rather_than_by_a_comma():
    text = links(auction_of("B", seed=7).run("Say something"), "seed=7")
    assert '<a href="#seed=7">Link to this auction</a> with the seed 7: ' in text


def test_agents_that_the_table_cannot_show_are_named():
    assert "&lt;b&gt; (function)" in about_others(auction_of("<b>"))
    assert "function or directory" in about_others(auction_of("B").model_copy(update={"agents": lambda prompt: []}))
