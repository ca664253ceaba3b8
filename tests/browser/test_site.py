"""The site in a real browser, at the widths of a phone and of a desktop."""

import functools
import http.server
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urldefrag

import pytest
from playwright.sync_api import expect

ROOT = Path(__file__).parents[2]
WIDTHS = (1280, 400)
# What is wider than the window, unless something around it scrolls by itself.
TOO_WIDE = """() => {
  const scrolls = element => element && element !== document.body &&
    (["auto", "scroll"].includes(getComputedStyle(element).overflowX) || scrolls(element.parentElement));
  const wide = [...document.querySelectorAll("article *")].filter(element =>
    element.getBoundingClientRect().right > innerWidth + 1 && !scrolls(element));
  const page = document.documentElement;
  return [...(page.scrollWidth > innerWidth ? [page] : []), ...wide].map(e => e.outerHTML.slice(0, 200));
}"""
LINKS = "() => [...document.querySelectorAll('a[href], img[src]')].map(element => element.href || element.src)"
IDS = "() => [...document.querySelectorAll('[id]')].map(element => element.id)"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the site."""
    built = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "docs/build_site.py", str(built)], cwd=ROOT, check=True)  # noqa: S603
    return built / "site"


@pytest.fixture(scope="session")
def address(site):
    """Where the site is served, on the loopback."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def page(browser):
    with browser.new_page(viewport={"width": WIDTHS[0], "height": 900}) as opened:
        yield opened


def test_pages_fit_their_width_and_load_and_link_to_what_is_there(site, address, page):
    faults = []
    page.on("console", lambda message: message.type == "error" and faults.append((page.url, message.text)))
    page.on("pageerror", lambda error: faults.append((page.url, error)))
    page.on("request", lambda request: request.url.startswith(address) or faults.append((page.url, request.url)))
    page.on(
        "requestfailed",  # not by leaving the page while it loads the search
        lambda request: request.failure == "net::ERR_ABORTED" or faults.append((request.url, request.failure)),
    )
    links, anchors = set(), set()
    pages = sorted(str(path.relative_to(site)) for path in site.rglob("*.html"))
    for name in pages:
        page.goto(address + name)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            faults += [(name, width, element) for element in page.evaluate(TOO_WIDE)]
        anchors |= {f"{address}{name}#{anchor}" for anchor in page.evaluate(IDS)}
        if name != "404.html":  # its links begin at the root of a server
            links |= {(name, link) for link in page.evaluate(LINKS) if link.startswith(address)}
    assert len(pages) > 50
    assert faults == []
    dead = [(name, link) for name, link in links if not (site / urldefrag(link).url.removeprefix(address)).is_file()]
    assert dead == []
    targets = {(name, link) for name, link in links if urldefrag(link).fragment}
    assert {(name, link) for name, link in targets if link not in anchors} == set()


def test_search_finds_a_word(address, page):
    page.goto(address)
    page.get_by_role("button", name="Search").first.click()
    page.keyboard.type("Gumbel")
    page.locator("a[href*='concepts/mechanism.html?h=Gumbel']").first.click()
    expect(page).to_have_title("The mechanism - llm_auction_chain")


@pytest.mark.parametrize("width", WIDTHS)
def test_dark_mode_follows_the_system_or_the_button(address, page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme="dark")
    page.goto(address)
    assert brightness(page) < 0.3
    page.locator("label[for^=__palette]:visible").click()  # to light, whatever the system has
    expect(page.locator("body")).to_have_attribute("data-md-color-scheme", "default")
    assert brightness(page) > 0.7
    page.locator("label[for^=__palette]:visible").click()
    expect(page.locator("body")).to_have_attribute("data-md-color-scheme", "slate")
    assert brightness(page) < 0.3


def brightness(page):
    """How bright the background is, from 0 to 1."""
    colour = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    red, green, blue = (
        float(part) for part in colour.removeprefix("rgba(").removeprefix("rgb(").rstrip(")").split(",")[:3]
    )
    return (red + green + blue) / 765


def test_formulas_are_drawn(address, page):
    page.goto(address + "concepts/mechanism.html")
    fraction = page.locator("math mfrac").first.bounding_box()
    line = page.locator("math mi").first.bounding_box()
    assert fraction["height"] > 1.5 * line["height"]


def test_a_menu_leads_from_page_to_page_on_a_phone(address, page):
    page.set_viewport_size({"width": 400, "height": 900})
    page.goto(address + "quickstart.html")
    page.locator("label.md-header__button[for=__drawer]").click()
    expect(page.get_by_role("link", name="Home").first).to_be_visible()
    page.goto(address + "quickstart.html")
    page.get_by_role("link", name="Next: ").click()
    expect(page).not_to_have_url(address + "quickstart.html")
