"""The playground in a real browser: an auction, lies, a receipt, a link, on a phone and a desktop, light and dark."""

import asyncio
import threading
from io import BytesIO

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from fastapi import FastAPI
from PIL import Image, ImageStat
from playwright.sync_api import expect

from llm_auction_chain import Agent, AuctionRunnable, Disclosure
from llm_auction_chain.rewards import MentionReward
from llm_auction_chain.server import Key, mount_playground
from llm_auction_chain.testing import MarkovChatModel

# gradio uses pandas in ways that newer ones warn about
pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")
WIDTHS = (1280, 400)
FAINT = 40  # of 255 greys
# What is wider than the window, unless something around it scrolls or is cut.
TOO_WIDE = """() => {
  const cut = element => element && element !== document.body &&
    (getComputedStyle(element).overflowX !== "visible" || cut(element.parentElement));
  const wide = [...document.querySelectorAll("body *")].filter(element =>
    element.getBoundingClientRect().right > innerWidth + 1 && !cut(element));
  const page = document.documentElement;
  return [...(page.scrollWidth > innerWidth ? [page] : []), ...wide].map(e => e.outerHTML.slice(0, 200));
}"""


class Waiting(MarkovChatModel):
    """It never replies, and notes when it is cancelled."""

    async def _agenerate(self, *args, **kwargs):
        STARTED.set()
        try:
            await asyncio.Event().wait()
        finally:
            CANCELLED.set()


KEY, OPERATOR = Key.new("operator", name="ops")
STARTED, CANCELLED = threading.Event(), threading.Event()


@pytest.fixture(scope="module")
def address():
    """Where the playground of two auctions is served, on the loopback."""
    agents = [
        Agent("B", MentionReward(["bbb", "bba", "bbc"], value=3.0), context="Bees & honey"),
        Agent("C", MentionReward(["ccc", "cca"], value=1.0)),
        Agent("L", lambda prompt, reply: 0.5 * reply.text.count("c")),
    ]
    model = MarkovChatModel(length=3)
    ads = AuctionRunnable(model=model, agents=agents, disclosure=Disclosure(text="Sponsored by {sponsors}."))
    app = FastAPI()
    mount_playground(app, {"ads": ads, "waiting": AuctionRunnable(model=Waiting(), agents=agents)})
    mount_playground(app, ads, "/locked", keys=[OPERATOR])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    ready = threading.Event()
    startup = server.startup

    async def started(sockets=None):
        await startup(sockets)
        ready.set()

    server.startup = started
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert ready.wait(30)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/playground/"
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def visit(browser, address):
    """Open pages, and note what a visitor would complain about: errors, failures, requests to other servers."""
    contexts, faults = [], []

    def open_page(link="", width=1280, scheme="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: message.type in ("error", "warning") and faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("response", lambda response: response.status >= 400 and faults.append(response.url))
        page.on("request", lambda request: request.url.startswith(OWN) or faults.append(request.url))
        page.on(
            "requestfailed",  # not where a stream that is over is closed
            lambda request: request.failure == "net::ERR_ABORTED" or faults.append(request.url),
        )
        page.goto(address + link)
        return page

    OWN = (address.removesuffix("playground/"), "data:", "blob:")  # noqa: N806
    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def run(page, seed=""):
    page.get_by_label("Seed").fill(seed)
    page.get_by_role("button", name="Run the auction").click()
    expect(page.get_by_text("distinct replies was drawn")).to_be_visible()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_an_auction_its_lies_its_receipt_and_its_link(visit, width, scheme):
    page = visit("", width, scheme)
    run(page, "7")
    reply = page.get_by_role("region", name="Reply", exact=True)
    drawn = page.get_by_role("listitem").filter(has_text="★ Drawn")
    expect(drawn).to_have_count(1)
    expect(reply).to_be_in_viewport()
    expect(reply).to_contain_text("ponsored")
    expect(page.get_by_role("row")).to_contain_text(["agent", "B", "C", "L"])

    curve = page.get_by_role("img", name="Expected utility")
    expect(curve).to_be_visible()
    page.get_by_label("Who lies").click()
    page.get_by_role("option", name="C").click()
    expect(page.get_by_role("img", name="Expected utility of C")).to_be_visible()
    slide(page, "Try lying", 5)
    expect(page.get_by_text("With reports times 1.5, it expects")).to_be_visible()
    tau = page.get_by_text("Distance from the model").locator("xpath=..").inner_text()
    slide(page, "What if tau were", 5)
    expect(page.get_by_text("Distance from the model").locator("xpath=..")).not_to_have_text(tau)
    for announced in ("#status", "#what_if", "#verified"):
        expect(page.locator(announced).locator("[aria-live=polite]")).to_have_count(1)

    page.get_by_role("button", name="Verify").click()
    expect(page.get_by_text("✓ Valid")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the receipt").click()
    assert download.value.path().read_text() == page.get_by_role("textbox", name="Receipt").input_value()
    page.get_by_role("button", name="Change a digit").click()
    expect(page.get_by_text("✗ Refused")).to_be_visible()
    expect(page.get_by_role("listitem").filter(has_text="computed from the rest")).not_to_have_count(0)

    for size in WIDTHS:
        page.set_viewport_size({"width": size, "height": 900})
        assert page.evaluate(TOO_WIDE) == []
        assert [(one["id"], one["nodes"][0]["html"]) for one in Axe().run(page).response["violations"]] == []

    link = page.get_by_role("link", name="Link to this auction").get_attribute("href")
    other = visit(link, width, scheme)
    expect(other.get_by_text("The link's settings are filled in")).to_be_visible()
    expect(other.get_by_label("Seed")).to_have_value("7")
    other.get_by_role("button", name="Run the auction").click()
    expect(other.get_by_role("region", name="Reply", exact=True)).to_have_text(reply.inner_text(), use_inner_text=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_table_that_scrolls_sideways_has_a_shadow_where_there_is_more(visit, scheme):
    page = visit(width=400, scheme=scheme)
    run(page, "7")
    table = page.get_by_role("region", name="Agents")
    assert edges_with_shadow(table) == ["right"]
    table.evaluate("element => element.scrollLeft = element.scrollWidth")
    assert edges_with_shadow(table) == ["left"]
    page.set_viewport_size({"width": 1280, "height": 900})
    assert edges_with_shadow(table) == []


def edges_with_shadow(table):
    """Return the edges of a table near which most pixels differ from the page's background."""
    picture = Image.open(BytesIO(table.screenshot())).convert("L")
    background = max(picture.getcolors())[1]
    near = {"left": 2, "right": picture.width - 3}
    columns = {edge: picture.crop((x, 0, x + 1, picture.height)) for edge, x in near.items()}
    return [edge for edge, column in columns.items() if abs(ImageStat.Stat(column).median[0] - background) > FAINT]


def slide(page, name, steps):
    slider = page.get_by_role("slider", name=name)
    slider.focus()
    for _ in range(steps):
        page.keyboard.press("ArrowRight")


def test_what_is_wrong_is_said_at_its_field_and_loses_nothing(visit):
    page = visit(width=400)
    run(page, "7")
    reply = page.get_by_role("region", name="Reply", exact=True).inner_text()
    page.get_by_label("Seed").fill("seven")
    page.get_by_role("button", name="Add an agent").click()
    expect(page.get_by_role("gridcell")).to_have_count(12)
    page.get_by_role("gridcell").nth(8).dblclick()
    page.get_by_role("textbox", name="Edit cell").fill("D")
    page.keyboard.press("Enter")
    expect(page.get_by_role("gridcell").nth(8)).to_contain_text("D")
    page.get_by_role("button", name="Run the auction").click()
    expect(page.get_by_role("alert")).to_contain_text("seed must be a whole number")
    expect(page.get_by_role("alert")).to_be_in_viewport()
    page.get_by_label("Seed").fill("7")
    page.get_by_role("button", name="Run the auction").click()
    expect(page.get_by_role("alert")).to_contain_text("Row 3 (D): there are no phrases")
    assert page.get_by_role("region", name="Reply", exact=True).inner_text() == reply
    expect(page.get_by_role("gridcell").nth(8)).to_contain_text("D")


def test_an_operators_key_opens_the_page_and_the_link_is_kept(visit):
    page = visit("../locked/#seed=5&question=Why")
    page.get_by_label("username").fill("me")
    page.get_by_label("password").fill(KEY)
    page.get_by_role("button", name="Login").click()
    expect(page.get_by_label("Seed")).to_have_value("5")
    expect(page.get_by_label("Question")).to_have_value("Why")


def test_a_cancelled_auction_stops_its_model(visit):
    page = visit()
    page.get_by_label("Model").click()
    page.get_by_role("option", name="waiting").click()
    page.get_by_role("button", name="Run the auction").click()
    assert STARTED.wait(30)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Cancelled.")).to_be_visible()
    assert CANCELLED.wait(30)


def test_visitors_at_once_have_their_own_auctions(visit):
    first, second = visit(), visit()
    run(first, "1")
    run(second, "2")
    slide(first, "Try lying", 1)
    expect(first.get_by_text("With reports times 1.1")).to_be_visible()
    expect(second.get_by_text("With reports times 1.1")).to_have_count(0)
    assert '"seed": "1"' in first.get_by_role("textbox", name="Receipt").input_value()
    assert '"seed": "2"' in second.get_by_role("textbox", name="Receipt").input_value()
