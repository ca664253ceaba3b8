"""A web page to see one auction: its candidates, what agents pay and why, and what else could have happened."""

import asyncio
import json
from collections.abc import Callable, Collection, Mapping
from contextvars import copy_context
from dataclasses import fields, replace
from importlib.resources import files
from typing import Any, TypeVar, get_args

from llm_auction_chain.auction.events import Progress
from llm_auction_chain.auction.result import AuctionResult
from llm_auction_chain.errors import AuctionError, MissingDependencyError
from llm_auction_chain.interfaces.runnable import AuctionRunnable
from llm_auction_chain.mechanism import PaymentRule
from llm_auction_chain.server.access import Access, Key
from llm_auction_chain.server.page_html import (
    about_others,
    alert,
    links,
    paragraph,
    result_html,
    verification_html,
    what_if_html,
)
from llm_auction_chain.server.page_settings import (
    COLUMNS,
    FieldError,
    Settings,
    has_table,
    prepare,
    temperature_of,
)
from llm_auction_chain.server.serving import auctions_by_model
from llm_auction_chain.server.what_if import liars_of, what_if
from llm_auction_chain.server.wire import WireError

try:
    import gradio as gr
    from fastapi import Response
except ImportError as error:
    raise MissingDependencyError("The playground needs gradio: pip install 'llm-auction-chain[playground]'") from error

__all__ = ["changed_digit", "mount_playground", "playground"]

_T = TypeVar("_T")
_AT_ONCE, _QUEUE = 2, 32  # auctions
_KEPT = 3600  # seconds that a session's auction is kept
_MOST_CANDIDATES, _LONGEST_QUESTION, _LONGEST_RECEIPT = 64, 8000, 5_000_000
_INTRODUCTION = """Agents bid on what the model may say. Their bids move the probabilities; one reply is drawn, and each
agent pays for how far it moved the draw. Nothing here is charged."""
_ABOUT_RECEIPT = """Everything can be computed again from it. Change what you like in it, and verify: a receipt that
is not as it was is refused."""
_NEEDS_KEY = "The playground shows private reports. Give any name, and an operator's key as the password."
# Of the theme: texts in gradio's own greys are too faint to read.
_LEGIBLE = {
    "block_info_text_color": "*neutral_600",
    "block_info_text_color_dark": "*neutral_300",
    "block_label_text_color": "*neutral_700",
    "block_label_text_color_dark": "*neutral_200",
    "block_title_text_color": "*neutral_700",
    "block_title_text_color_dark": "*neutral_200",
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_300",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_dark": "*primary_600",
    "input_placeholder_color": "*neutral_600",
    "input_placeholder_color_dark": "*neutral_300",
}
# What changes is announced to screen readers.
_ANNOUNCE = (
    """for (const part of document.querySelectorAll(".prose.announced")) part.setAttribute("aria-live", "polite");"""
)
# The link is a fragment, which browsers send to no server: it holds a question and bids.
_ON_LOAD = f"""() => {{
  {_ANNOUNCE}
  addEventListener("hashchange", () => location.reload());
  return location.hash.slice(1);
}}"""
# On a phone, a field that is wrong and the reply may be below the button.
_ON_SUCCESS = f"""() => {{
  {_ANNOUNCE}
  document.querySelector("[role=alert], .reply")?.scrollIntoView({{block: "nearest"}});
}}"""


def changed_digit(receipt: str) -> tuple[str, str]:
    """Return a receipt with one digit changed, and which: of the largest charge, or of the seed where no agent bids.

    >>> text, change = changed_digit('{"agents": [{"agent": "B", "charge": "1.25"}]}')
    >>> change
    'agents[0].charge: 1.25 became 1.26'
    """
    try:
        content = json.loads(receipt)
        bids = content["agents"]
        k = max(range(len(bids)), key=lambda k: float(bids[k]["charge"]), default=-1)
        place, name, where = (bids[k], "charge", f"agents[{k}].charge") if k >= 0 else (content, "seed", "seed")
        before = str(place[name])
        place[name] = f"{before[:-1]}{(int(before[-1]) + 1) % 10}"
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return receipt, "Nothing was changed: this is no receipt."
    return json.dumps(content, indent=2), f"{where}: {before} became {place[name]}"


def mount_playground(
    app: Any,
    auction: AuctionRunnable | Mapping[str, AuctionRunnable],
    path: str = "/playground",
    keys: Collection[Key] | None = None,
) -> None:
    """Add the playground to a FastAPI application.

    Args:
        app: the application.
        auction: as for `playground`.
        path: where the page is.
        keys: of the server. The page asks for an operator's; None opens it to all that reach it.

    Raises:
        ConfigurationError: `auction` is not an auction, or the keys are invalid.
    """
    access = Access(keys)

    def is_operator(_: str, password: str) -> bool:
        try:
            access.caller(f"Bearer {password}").require("operator")
        except WireError:
            return False
        return True

    fonts = [gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")]
    theme = gr.themes.Default(
        primary_hue="indigo", font=fonts, font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")]
    ).set(**_LEGIBLE)
    # browsers look for an icon, and note an error where there is none
    app.add_api_route("/favicon.ico", lambda: Response(status_code=204), include_in_schema=False)
    _in_a_loop(lambda: gr.mount_gradio_app(
        app, playground(auction), path, theme=theme, footer_links=[], run_history=False, show_error=False,
        ssr_mode=False, mcp_server=False, max_file_size="1kb", auth=is_operator if access.needs_keys else None,
        auth_message=_NEEDS_KEY if access.needs_keys else None,
    ))  # fmt: skip


def _in_a_loop(make: Callable[[], _T]) -> _T:
    """Return what a function makes. Where no event loop runs, gradio would open several, and close none."""

    async def call() -> _T:
        return make()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(call())
    return make()


def playground(auction: AuctionRunnable | Mapping[str, AuctionRunnable]) -> gr.Blocks:
    """Return a page on which one auction after the other runs, seen from inside and replayed.

    It works on copies of the auctions without their ledger, so no owner pays. It shows private reports: the page
    is for the operator. `mount_playground` puts it behind an operator's key.

    Args:
        auction: an auction, or several by the ids that the page offers.

    Raises:
        ConfigurationError: it is none.

    >>> from llm_auction_chain import Agent, AuctionRunnable
    >>> from llm_auction_chain.testing import MarkovChatModel
    >>> type(playground(AuctionRunnable(model=MarkovChatModel()))).__name__
    'Blocks'
    """
    auctions = auctions_by_model("auction", auction)
    page: gr.Blocks = _in_a_loop(lambda: _Page(auctions).blocks)
    return page


class _Page:
    """The page: its fields, its results, and what happens when something is pressed.

    Args:
        auctions: by their ids.
    """

    def __init__(self, auctions: Mapping[str, AuctionRunnable]) -> None:
        self._auctions = auctions
        with gr.Blocks(analytics_enabled=False, title="Auction playground", elem_id="playground") as self.blocks:
            css = (files("llm_auction_chain.server") / "page.css").read_text(encoding="utf-8")
            gr.HTML(f"<style>{css}</style><h1>Auction playground</h1><p>{_INTRODUCTION}</p>")
            self._result, self._fragment = gr.State(None, time_to_live=_KEPT), gr.Textbox(visible=False)
            with gr.Row():
                with gr.Column(scale=2, min_width=320):
                    self._add_fields()
                with gr.Column(scale=3, min_width=320):
                    self._add_results()
            self._connect()
        self.blocks.queue(default_concurrency_limit=_AT_ONCE, max_size=_QUEUE, api_open=False)

    def _add_fields(self) -> None:
        model, own = next((model, Settings.of(model, one)) for model, one in self._auctions.items())
        gr.HTML("<h2>Settings</h2>")
        self._model = gr.Dropdown(
            list(self._auctions), value=model, label="Model", visible=len(self._auctions) > 1, elem_id="model"
        )
        self._question = gr.Textbox(
            own.question, label="Question", lines=2, max_lines=6, max_length=_LONGEST_QUESTION, elem_id="question"
        )
        self._wrong_question = _alert()
        with gr.Row():
            self._run = gr.Button("Run the auction", variant="primary", elem_id="run")
            self._cancel = gr.Button("Cancel", elem_id="cancel")
        self._status = gr.HTML(paragraph("No auction yet."), elem_id="status", elem_classes="announced")
        self._agents = gr.Dataframe(
            visible=has_table(self._auctions[model]),
            value=[list(row) for row in own.agents], headers=list(COLUMNS), datatype="str", type="array",
            label="Agents: each pays up to its value for a reply with one of its phrases", interactive=True, wrap=True,
            elem_id="agents",
            column_widths=["90px", "110px", "190px", "70px"], buttons=[],
        )  # fmt: skip
        self._add = gr.Button("Add an agent", size="sm", elem_id="add", visible=has_table(self._auctions[model]))
        self._wrong_agents = _alert()
        self._others = gr.HTML(about_others(self._auctions[model]))
        self._candidates, self._tau, self._temperature = _sliders(own)
        self._rule = gr.Radio(
            list(get_args(PaymentRule)), value=own.rule, label="Payment rule", elem_id="rule",
            info="All four charge the same in the mean.",
        )  # fmt: skip
        self._seed = gr.Textbox(
            own.seed, label="Seed", max_lines=1, placeholder="fresh", elem_id="seed", max_length=60,
            info="The same seed repeats the auction. Empty: a fresh one.",
        )  # fmt: skip
        self._wrong_seed = _alert()

    def _add_results(self) -> None:
        gr.HTML("<h2>Auction</h2>")
        with gr.Column(visible=False) as self._results:
            self._reply = gr.HTML(elem_id="reply")
            with gr.Column(visible=True) as self._changes:
                gr.HTML("<h3>What if?</h3><p>The same candidates, settled again. No model is called.</p>")
                with gr.Row():
                    self._other_tau = gr.Slider(0.1, 10, 1, label="What if tau were", elem_id="other_tau")
                    self._liar = gr.Dropdown([], label="Who lies", elem_id="liar")
                self._factor = gr.Slider(
                    -1, 3, 1, step=0.1, label="Try lying: reports times", elem_id="factor",
                    info="1 is the truth, 2 exaggerates to the double, 0 is silence.",
                )  # fmt: skip
                self._what_if = gr.HTML(elem_id="what_if", elem_classes="announced")
            gr.HTML(f"<h3>Receipt</h3><p>{_ABOUT_RECEIPT}</p>")
            self._receipt = gr.Textbox(
                label="Receipt", lines=6, max_lines=6, max_length=_LONGEST_RECEIPT, elem_id="receipt"
            )
            with gr.Row():
                self._verify = gr.Button("Verify", elem_id="verify")
                self._change = gr.Button("Change a digit", elem_id="change")
            self._verified = gr.HTML(elem_id="verified", elem_classes="announced")
            self._links = gr.HTML(elem_id="links")

    def _connect(self) -> None:
        fields = [
            self._model, self._question, self._agents, self._candidates, self._tau, self._temperature, self._rule,
            self._seed,
        ]  # fmt: skip
        alerts = [self._wrong_question, self._wrong_agents, self._wrong_seed]
        changes = [self._result, self._other_tau, self._liar, self._factor]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        run = gr.on(
            [self._run.click, self._question.submit], self._run_auction, fields,
            [
                *alerts, self._status, self._result, self._results, self._reply, self._changes, *changes[1:],
                self._what_if, self._receipt, self._verified, self._links,
            ],
            show_progress_on=[self._status], api_visibility="private", trigger_mode="once",
        )  # fmt: skip
        run.success(None, js=_ON_SUCCESS, **quiet)
        self._cancel.click(lambda: paragraph("Cancelled."), None, self._status, cancels=[run], **quiet)
        gr.on(
            [self._other_tau.input, self._liar.input, self._factor.input], _recompute, changes, self._what_if,
            trigger_mode="always_last", concurrency_limit=_QUEUE, **quiet,
        )  # fmt: skip
        self._add.click(lambda rows: [*rows, [""] * len(COLUMNS)], self._agents, self._agents, **quiet)
        self._verify.click(verification_html, self._receipt, self._verified, **quiet)
        self._change.click(_with_changed_digit, self._receipt, [self._receipt, self._verified], **quiet)
        outputs = [*fields, self._add, self._others, self._status]
        self._model.input(self._choose, self._model, outputs, **quiet)
        self.blocks.load(self._open_link, self._fragment, outputs, js=_ON_LOAD, **quiet)

    async def _run_auction(self, *values: Any, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        """Run an auction and return the contents of all results; where a field is wrong, the message at the field."""
        try:
            settings = Settings(**dict(zip((field.name for field in fields(Settings)), values, strict=True)))
            auction = self._auctions[settings.model]
            context = copy_context()  # of the page's event, which the threads of the auction do not have

            def advance(now: Progress) -> None:
                context.copy().run(progress, (now.done, now.total), desc=f"{now.label} {now.note}".strip())

            is_own = settings.temperature == temperature_of(auction)
            keywords: dict[str, Any] = {} if is_own else {"temperature": settings.temperature}
            copy = prepare(auction, settings)
            result = await copy.arun(settings.question, progress=advance, **keywords)
        except FieldError as error:
            return [*_alerts(error), *[gr.skip()] * 12] if error.field != "settings" else _failure(str(error))
        except AuctionError as error:
            return _failure(str(error))
        except Exception as error:  # noqa: BLE001 - the model's, whatever it is; the page is the operator's
            return _failure(f"{type(error).__name__}: {str(error)[:500]}")
        link = replace(settings, seed=str(result.seed)).link()
        liars, tau = liars_of(result), result.settlement.tau
        liar = max(result.explain().agents, key=lambda one: one.pays * one.influence).agent if liars else ""
        least = 0 if result.settlement.payment_rule == "proportional" else -1
        return [
            *_alerts(None),
            paragraph(f"One of {result.distinct_replies} distinct replies was drawn, of {result.draws} candidates."),
            result,
            gr.Column(visible=True),
            result_html(result),
            gr.Column(visible=bool(result.agents)),
            gr.Slider(minimum=tau / 10, maximum=4 * tau, value=tau, step=tau / 100),
            gr.Dropdown(liars, value=liar or None),
            gr.Slider(minimum=least, value=1),
            what_if_html(result, what_if(result, tau=tau, liar=liar)),
            json.dumps(result.receipt.as_dict(), indent=2),
            "",
            links(result, link),
        ]

    def _choose(self, model: str) -> list[Any]:
        """Return the fields as another auction has them."""
        return [*self._fill(Settings.of(model, self._auctions[model])), gr.skip()]

    def _open_link(self, fragment: str) -> list[Any]:
        """Return the fields as the link has them."""
        if not fragment:
            return [gr.skip()] * 11
        try:
            settings = Settings.of_link(fragment, self._auctions)
        except FieldError as error:
            return [*[gr.skip()] * 10, alert(str(error))]
        return [*self._fill(settings), paragraph("The link's settings are filled in. Run the auction to see it.")]

    def _fill(self, settings: Settings) -> list[Any]:
        auction = self._auctions[settings.model]
        return [
            settings.model, settings.question,
            gr.Dataframe([list(row) for row in settings.agents], visible=has_table(auction)),
            *_sliders(settings), settings.rule, settings.seed, gr.Button(visible=has_table(auction)),
            about_others(auction),
        ]  # fmt: skip


def _sliders(settings: Settings) -> tuple[gr.Slider, gr.Slider, gr.Slider]:
    """Return the sliders of M, tau and temperature, wide enough for the settings."""
    return (
        gr.Slider(
            1, max(_MOST_CANDIDATES, settings.candidates), settings.candidates, step=1, label="Candidates (M)",
            elem_id="candidates",
        ),
        gr.Slider(
            min(0.1, settings.tau), max(10.0, 2 * settings.tau), settings.tau, step=min(0.1, settings.tau), label="Tau",
            elem_id="tau", info="Small: agents decide. Large: the model.",
        ),
        gr.Slider(
            0, 2, settings.temperature, step=0.05, label="Temperature", elem_id="temperature",
            info="Where it begins, it is the model's own.",
        ),
    )  # fmt: skip


def _alert() -> gr.HTML:
    return gr.HTML(visible=False)


def _alerts(error: FieldError | None) -> list[gr.HTML]:
    """Return the messages at the fields: one at most, the others empty."""
    field = error.field if error else ""
    message = alert(str(error))
    return [gr.HTML(message if field == one else "", visible=field == one) for one in ("question", "agents", "seed")]


def _failure(message: str) -> list[Any]:
    return [*_alerts(None), alert(message), *[gr.skip()] * 11]


def _recompute(result: AuctionResult | None, tau: float | None, liar: str | None, factor: float | None) -> Any:
    if result is None:
        return "<p>The auction is no longer kept. Run it again.</p>"
    if tau is None or factor is None:  # a number that is being written
        return gr.skip()
    try:
        return what_if_html(result, what_if(result, tau=tau, liar=liar or "", factor=factor))
    except AuctionError as error:
        return alert(str(error))


def _with_changed_digit(receipt: str) -> tuple[str, str]:
    changed, change = changed_digit(receipt)
    return changed, verification_html(changed, change)
