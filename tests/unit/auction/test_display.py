"""What a result looks like: a few lines that say the settlement's own figures, and no private reward."""

from html.parser import HTMLParser

from langchain_core.language_models import FakeMessagesListChatModel
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


class Page(HTMLParser):
    """Collects the elements of a page and its texts, and checks that every element is closed in its turn."""

    def __init__(self, source):
        super().__init__()
        self.opened, self.tags, self.texts = [], [], []
        self.feed(source)
        assert self.opened == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "br":
            self.opened.append(tag)

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


async def test_a_notebook_shows_question_reply_agents_and_candidates():
    for result in await both(auction()):
        page = Page(result._repr_html_())
        assert page.tags[0] == ("section", {"aria-label": "Auction", "style": "overflow-x:auto"})
        for text in ("x", " " + result.text, "Agents", "Candidates", "B", str(result.payments["B"])):
            assert text in page.texts or f" {text}" in page.texts
        assert [text for text in page.texts if text.endswith(" (the reply)")] == [f"{result.text} (the reply)"]
        assert any(result.auction_id in text for text in page.texts)


def test_every_table_has_a_caption_and_headings_for_rows_and_columns():
    page = Page(auction().run("x")._repr_html_())
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption") == tags.count("thead") == 2
    assert {attrs.get("scope") for tag, attrs in page.tags if tag == "th"} == {"row", "col"}


def test_no_text_of_a_reply_or_a_prompt_becomes_html():
    attack = "<script>alert(1)</script><img src=x onerror='a'>&amp; $x$"
    model = FakeMessagesListChatModel(responses=[AIMessage(f"{attack}{text}") for text in "abcd"])
    page = Page(auction(model=model, n_candidates=4).run(attack)._repr_html_())
    names = {tag for tag, _ in page.tags}
    assert names <= {"section", "p", "strong", "table", "caption", "thead", "tbody", "tr", "th", "td", "br", "span"}
    assert {name for _, attrs in page.tags for name in attrs} <= {"aria-label", "scope", "style"}
    assert "".join(page.texts).count(attack) >= 6
    assert "$" not in auction(model=model, n_candidates=4).run(attack)._repr_html_()


def test_a_page_sets_no_colours():
    page = Page(auction().run("x")._repr_html_())
    rules = ";".join(attrs["style"] for _, attrs in page.tags if "style" in attrs).split(";")
    properties = {"font-weight", "margin", "overflow-x", "padding", "text-align", "vertical-align"}
    assert {rule.partition(":")[0] for rule in rules} == properties


def test_a_page_stays_small_and_has_the_reply():
    many = FakeMessagesListChatModel(responses=[AIMessage(f"{k} " * 5000) for k in range(60)])
    for seed in range(5):
        result = auction(model=many, n_candidates=60, seed=seed).run("x" * 100_000)
        shown = result._repr_html_()
        assert len(shown) < 100_000
        assert "Candidates, 2" in shown
        assert shown.count(" (the reply)") == 1


def test_a_page_without_agents_has_the_candidates_alone():
    shown = auction([]).run("x")._repr_html_()
    assert ">Agents<" not in shown
    assert ">Candidates</caption>" in shown


def test_a_page_has_the_agents_that_moved_the_draw_most():
    agents = [Agent(f"A{k}", lambda prompt, reply, k=k: 0.001 * k * reply.text.count("b")) for k in range(30)]
    shown = auction(agents).run("x")._repr_html_()
    assert ">Agents, 20 of 30</caption>" in shown
    assert (">A29</th>" in shown, ">A3</th>" in shown) == (True, False)
