"""What a result looks like: a few lines that say the settlement's own figures, and no private reward."""

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from llm_auction_chain import Agent, Billing, Policy
from llm_auction_chain.auction.explanation import shortened
from tests.unit.auction.auctions import LIKES_B, LIKES_C, auction, both


async def test_a_result_prints_as_about_ten_lines_with_question_reply_payments_and_effects():
    for result in await both(auction()):
        lines = str(result).splitlines()
        assert 8 <= len(lines) <= 12
        assert lines[0] == 'Question: "x"'
        assert lines[1] == f'Reply:    "{result.text}"'
        for agent in result.explain().agents:
            (line,) = [line for line in lines if line.startswith(f"  {agent.agent}: ")]
            assert f"pays {result.payments[agent.agent]}, moved the draw by {agent.influence:.1%}" in line
            assert ("changed the reply" in line) == agent.changed_the_reply
        assert f"Revenue {result.revenue}, tau 1" in str(result)


def test_an_amount_has_its_currency():
    result = auction(billing=Billing(currency="EUR")).run("x")
    assert f"B: pays {result.payments['B']} EUR," in str(result)
    assert f"Revenue {result.revenue} EUR," in str(result)


def test_of_many_agents_those_that_moved_the_draw_most_come_first():
    agents = [Agent(f"A{k}", lambda prompt, reply, k=k: 0.001 * k * reply.text.count("b")) for k in range(30)]
    result = auction(agents).run("x")
    lines = str(result).splitlines()
    assert len(lines) <= 12
    assert [line.split(":")[0].strip() for line in lines[3:8]] == ["A29", "A28", "A27", "A26", "A25"]
    assert lines[8] == "  and 25 more"


def test_an_agent_without_a_report_or_a_place_is_named():
    def fails(prompt, reply):
        raise LookupError("no such reply")

    rival = [Agent(name, LIKES_B.reward, categories=["music"]) for name in "MN"]
    result = auction([*rival, Agent("F", fails)], policy=Policy(exclusive_categories={"music"})).run("x")
    assert "  F (error): pays 0.000000, moved the draw by 0.0%" in str(result)
    assert "  N took no part: another owner holds the category music." in str(result)
    assert "1 in result.warnings, the first: \"'F' moved no reply: LookupError" in str(result)


def test_a_result_without_agents_prints():
    result = auction([]).run("x")
    assert "No agent that pays made it likelier." in str(result)
    assert "Revenue 0.000000" in str(result)


def test_the_question_is_the_users_last_message():
    history = [SystemMessage("Be kind."), HumanMessage("First?"), AIMessage("Yes."), HumanMessage("Second?")]
    assert str(auction().run(history)).startswith('Question: "Second?"')
    assert str(auction().run(history[:1])).startswith('Question: "Be kind."')


def test_a_long_text_is_cut_and_moves_no_cursor():
    assert shortened("ab " * 1000) == f'"{"ab " * 19}ab…"'
    assert shortened("a\x1b[2J\r\n b") == r'"a\x1b[2J b"'
    assert len(str(auction().run("x" * 100_000))) < 2000


def test_a_repr_is_one_line_without_rewards():
    result = auction([Agent("B", lambda prompt, reply: 0.123456789), LIKES_C]).run("x")
    assert repr(result).startswith(f'<AuctionResult {result.auction_id}: "{result.text}"')
    assert len(repr(result)) < 200
    assert "0.1234" not in f"{result!r} {result}"
