"""A web page to see one auction: its candidates, what agents pay and why, and what else could have happened."""

import asyncio
import json
import math
from base64 import b64encode
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, fields, replace
from html import escape
from importlib.resources import files
from typing import Any, TypeVar, get_args
from urllib.parse import parse_qs, urlencode

from llm_auction_chain.agents import Agent, check_agents, load_agents
from llm_auction_chain.auction.admission import SEEDS
from llm_auction_chain.auction.display import with_count
from llm_auction_chain.auction.events import Progress
from llm_auction_chain.auction.explanation import why_left_out
from llm_auction_chain.auction.result import AuctionResult
from llm_auction_chain.auction.settings import Billing
from llm_auction_chain.candidates import chat_models_in
from llm_auction_chain.errors import AuctionError, ConfigurationError, MissingDependencyError
from llm_auction_chain.interfaces.runnable import AuctionRunnable
from llm_auction_chain.mechanism import PaymentRule
from llm_auction_chain.receipts import verify
from llm_auction_chain.rewards import MentionReward
from llm_auction_chain.server import what_if as what_ifs
from llm_auction_chain.server.access import Access
from llm_auction_chain.server.what_if import bar, liars_of, what_if
from llm_auction_chain.server.wire import WireError
from llm_auction_chain.validators import number, refuse, text, whole_number

try:
    import gradio as gr
    from fastapi import Response
except ImportError as error:
    raise MissingDependencyError("The playground needs gradio: pip install 'llm-auction-chain[playground]'") from error

__all__ = ["Settings", "agents_of", "changed_digit", "mount_playground", "playground", "rows_of"]

_T = TypeVar("_T")
Rows = Sequence[Sequence[Any]]
_COLUMNS = ("name", "description", "phrases, with commas between", "value")
_QUESTION = "Suggest a healthy breakfast in one sentence."
_AT_ONCE, _QUEUE = 2, 32  # auctions
_KEPT = 3600  # seconds that a session's auction is kept
_MOST_CANDIDATES, _LONGEST_QUESTION, _LONGEST_RECEIPT = 64, 8000, 5_000_000
_CARDS, _AGENTS, _DIFFERENCES = 12, 20, 8  # shown at once
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


class FieldError(ConfigurationError):
    """What is wrong with a field of the page.

    Attributes:
        field: `question`, `agents`, `seed` or `settings`.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the page's fields hold, in their order. A link holds the same.

    Attributes:
        model: id of the auction.
        question: what the user asks.
        agents: a row for each: name, description, phrases with commas between, value.
        candidates: M, how many replies are drawn.
        tau: weight of the reference model, money per nat.
        temperature: of the model.
        rule: how the charge follows from the draw.
        seed: repeats the auction; empty for a fresh one.
    """

    model: str
    question: str
    agents: Rows
    candidates: int
    tau: float
    temperature: float
    rule: str
    seed: str

    @classmethod
    def of(cls, model: str, auction: AuctionRunnable) -> "Settings":
        """Return where the page begins: the auction's own settings."""
        return cls(
            model=model,
            question=_QUESTION,
            agents=rows_of(auction),
            candidates=auction.n_candidates,
            tau=auction.tau,
            temperature=_temperature_of(auction),
            rule=auction.payment_rule,
            seed="" if auction.seed is None else str(auction.seed),
        )

    def link(self) -> str:
        """Return the settings as the end of a link, behind its `#`."""
        return urlencode({**vars(self), "agents": json.dumps(self.agents, ensure_ascii=False)})

    @classmethod
    def of_link(cls, link: str, auctions: Mapping[str, AuctionRunnable]) -> "Settings":
        """Return the settings of a link.

        Raises:
            FieldError: it is not one of this page.
        """
        values = {name: several[-1] for name, several in parse_qs(link, max_num_fields=20).items()}
        names = [field.name for field in fields(cls)]
        model = values.get("model", next(iter(auctions)))
        if not values or {*values} - {*names} or model not in auctions:
            raise FieldError("settings", "This link is not one of this page's, so its settings are not filled in.")
        own = cls.of(model, auctions[model])
        try:
            rows = json.loads(values["agents"]) if "agents" in values else own.agents
            if not all(isinstance(cell, str | int | float) for row in rows for cell in row):
                raise TypeError  # noqa: TRY301 - like any other rows
            return replace(
                own,
                question=values.get("question", own.question),
                agents=[[str(cell) for cell in row] for row in rows],
                candidates=whole_number(
                    "candidates", int(values.get("candidates", own.candidates)), least=1, below=1001
                ),
                tau=number("tau", float(values.get("tau", own.tau)), above=0),
                temperature=number("temperature", float(values.get("temperature", own.temperature)), least=0, most=2),
                rule=values.get("rule", own.rule) if values.get("rule") in get_args(PaymentRule) else own.rule,
                seed=values.get("seed", own.seed),
            )
        except (TypeError, ValueError, ConfigurationError) as error:
            raise FieldError("settings", f"This link cannot be read: {error or 'its agents are no table'}.") from error


def rows_of(auction: AuctionRunnable) -> list[list[str]]:
    """Return the table of an auction's agents: those that pay for mentions; the demo's where it has no agents."""
    agents = auction.agents if isinstance(auction.agents, Collection) else ()
    agents = load_agents(None) if auction.agents == () else agents
    mentions = ((agent, reward) for agent in agents if (reward := _mentions_of(agent)))
    return [
        [agent.name, agent.context, ", ".join(reward.phrases), str(reward.value).removesuffix(".0")]
        for agent, reward in mentions
    ]


def agents_of(auction: AuctionRunnable, rows: Rows) -> Any:
    """Return the agents of the table, and those of the auction that the table cannot show.

    A row that has the name of an agent of the auction keeps what the table does not show: owner, cap, categories.

    Raises:
        FieldError: a row is no agent; the message names the row and what is wrong.
    """
    if not isinstance(auction.agents, Collection):
        return auction.agents
    originals = {agent.name: agent for agent in auction.agents}
    agents = {agent.name: agent for agent in auction.agents if not _mentions_of(agent)}
    bidders = [agent for k, row in enumerate(rows, 1) if (agent := _agent_of(row, k, originals))]
    try:
        check_agents([*agents.values(), *bidders])
    except ConfigurationError as error:
        raise FieldError("agents", str(error)) from error
    agents |= {agent.name: agent for agent in bidders}
    # in the auction's own order, on which exclusive categories depend
    return [agents.pop(name) for name in [*originals] if name in agents] + [*agents.values()]


def _agent_of(row: Sequence[Any], k: int, originals: Mapping[str, Agent]) -> Agent | None:
    """Return the agent of a row; None for an empty row."""
    cells = [str("" if cell is None else cell).strip() for cell in row]
    cells += [""] * (len(_COLUMNS) - len(cells))
    name, description, items, amount = cells[: len(_COLUMNS)]
    if not any(cells):
        return None
    where = f"Row {k}{f' ({name})' if name else ''}"
    if not name:
        raise FieldError("agents", f"{where}: the name is empty. Give the agent a name, or clear the row.")
    phrases = [phrase for part in items.split(",") if (phrase := part.strip())]
    if not phrases:
        raise FieldError("agents", f"{where}: there are no phrases. Write at least one word that the agent pays for.")
    try:
        value = float(amount)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise FieldError("agents", f"{where}: the value must be a number such as 2.5, got {amount!r}.")
    try:
        if (original := originals.get(name)) and isinstance(original.reward, MentionReward):
            return replace(original, context=description, reward=replace(original.reward, phrases=phrases, value=value))
        reward = {"mention": {"phrases": phrases, "value": value}}
        return Agent.from_dict({"name": name, "context": description, "reward": reward})
    except ConfigurationError as error:
        raise FieldError("agents", f"{where}: {str(error).removeprefix('The agent, ')}") from error


def _mentions_of(agent: Agent) -> MentionReward | None:
    """Return the reward of an agent that the table can show; None for any other, and for phrases with commas."""
    reward = agent.reward
    return reward if type(reward) is MentionReward and "," not in "".join(reward.phrases) else None


def _has_table(auction: AuctionRunnable) -> bool:
    """Return whether the agents are a list, which the table can replace."""
    return isinstance(auction.agents, Collection)


def _temperature_of(auction: AuctionRunnable) -> float:
    """Return the model's own temperature, and 1 where it does not say."""
    bound = getattr(auction.model, "kwargs", {}).get("temperature")
    known = [bound, *(getattr(model, "temperature", None) for model in chat_models_in(auction.model))]
    return next((float(one) for one in known if isinstance(one, int | float)), 1.0)


def _prepare(auction: AuctionRunnable, settings: Settings) -> AuctionRunnable:
    """Return a copy of an auction with the settings of the page. It charges nobody and tells nobody.

    Raises:
        FieldError: a setting is invalid.
    """
    question, seed = settings.question, settings.seed.strip()
    if not question.strip():
        raise FieldError("question", "The question is empty. Ask something.")
    if seed and not (seed.isascii() and seed.isdigit() and int(seed) < SEEDS):
        raise FieldError("seed", f"The seed must be a whole number of at least 0 and below 2**128, got {seed[:40]!r}.")
    agents = agents_of(auction, settings.agents)
    copy = auction.model_copy(
        update={"billing": Billing(currency=auction.billing.currency), "on_event": None, "agents": ()}
    )
    try:
        copy.n_candidates, copy.tau = int(settings.candidates), float(settings.tau)
        copy.payment_rule, copy.seed, copy.agents = settings.rule, int(seed) if seed else None, agents  # type: ignore[assignment]
    except (ConfigurationError, TypeError, ValueError) as error:
        raise FieldError("settings", str(error)) from error
    return copy


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
    access: Access | None = None,
) -> None:
    """Add the playground to a FastAPI application.

    Args:
        app: the application.
        auction: as for `playground`.
        path: where the page is.
        access: the keys of the server. If it needs keys, the page asks for an operator's.

    Raises:
        ConfigurationError: `auction` is not an auction.
    """

    def is_operator(_: str, password: str) -> bool:
        try:
            access.caller(f"Bearer {password}", "operator")  # type: ignore[union-attr]
        except WireError:
            return False
        return True

    fonts = [gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")]
    theme = gr.themes.Default(
        primary_hue="indigo", font=fonts, font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")]
    ).set(**_LEGIBLE)
    needs_key = access is not None and access.needs_keys
    # browsers look for an icon, and note an error where there is none
    app.add_api_route("/favicon.ico", lambda: Response(status_code=204), include_in_schema=False)
    _in_a_loop(lambda: gr.mount_gradio_app(
        app, playground(auction), path, theme=theme, footer_links=[], run_history=False, show_error=False,
        ssr_mode=False, mcp_server=False, max_file_size="1kb", auth=is_operator if needs_key else None,
        auth_message=_NEEDS_KEY if needs_key else None,
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
    """Return a page on which one auction after the other is held, seen from inside and replayed.

    It works on copies of the auctions without their ledger, so it charges nobody. It shows private reports: the page
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
    auctions = {"llm-auction": auction} if isinstance(auction, AuctionRunnable) else auction
    if not isinstance(auctions, Mapping) or not auctions:
        raise refuse("auction", "an AuctionRunnable, or a mapping from ids to some", auction)
    for model, one in auctions.items():
        text("The id of an auction", model)
        if not isinstance(one, AuctionRunnable):
            raise refuse(f"auction[{model!r}]", "an AuctionRunnable", one)
    page: gr.Blocks = _in_a_loop(lambda: _Page(dict(auctions)).blocks)
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
        self._status = gr.HTML(_status("No auction yet."), elem_id="status", elem_classes="announced")
        self._agents = gr.Dataframe(
            visible=_has_table(self._auctions[model]),
            value=[list(row) for row in own.agents], headers=list(_COLUMNS), datatype="str", type="array",
            label="Agents: each pays up to its value for a reply with one of its phrases", interactive=True, wrap=True,
            elem_id="agents",
            column_widths=["90px", "110px", "190px", "70px"], buttons=[],
        )  # fmt: skip
        self._add = gr.Button("Add an agent", size="sm", elem_id="add", visible=_has_table(self._auctions[model]))
        self._wrong_agents = _alert()
        self._others = gr.HTML(_about_others(self._auctions[model]))
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
            [self._run.click, self._question.submit], self._hold, fields,
            [
                *alerts, self._status, self._result, self._results, self._reply, self._changes, *changes[1:],
                self._what_if, self._receipt, self._verified, self._links,
            ],
            show_progress_on=[self._status], api_visibility="private", trigger_mode="once",
        )  # fmt: skip
        run.success(None, js=_ON_SUCCESS, **quiet)
        self._cancel.click(lambda: _status("Cancelled."), None, self._status, cancels=[run], **quiet)
        gr.on(
            [self._other_tau.input, self._liar.input, self._factor.input], _recompute, changes, self._what_if,
            trigger_mode="always_last", concurrency_limit=_QUEUE, **quiet,
        )  # fmt: skip
        self._add.click(lambda rows: [*rows, [""] * len(_COLUMNS)], self._agents, self._agents, **quiet)
        self._verify.click(_verification, self._receipt, self._verified, **quiet)
        self._change.click(_with_changed_digit, self._receipt, [self._receipt, self._verified], **quiet)
        outputs = [*fields, self._add, self._others, self._status]
        self._model.input(self._choose, self._model, outputs, **quiet)
        self.blocks.load(self._open_link, self._fragment, outputs, js=_ON_LOAD, **quiet)

    async def _hold(self, *values: Any, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        """Hold an auction and return the contents of all results; where a field is wrong, the message at the field."""
        try:
            settings = Settings(**dict(zip((field.name for field in fields(Settings)), values, strict=True)))
            auction = self._auctions[settings.model]
            context = copy_context()  # of the page's event, which the threads of the auction do not have

            def advance(now: Progress) -> None:
                context.copy().run(progress, (now.done, now.total), desc=f"{now.label} {now.note}".strip())

            is_own = settings.temperature == _temperature_of(auction)
            keywords: dict[str, Any] = {} if is_own else {"temperature": settings.temperature}
            copy = _prepare(auction, settings)
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
            _status(f"One of {result.distinct_replies} distinct replies was drawn, of {result.draws} candidates."),
            result,
            gr.Column(visible=True),
            _result_html(result),
            gr.Column(visible=bool(result.agents)),
            gr.Slider(minimum=tau / 10, maximum=4 * tau, value=tau, step=tau / 100),
            gr.Dropdown(liars, value=liar or None),
            gr.Slider(minimum=least, value=1),
            what_ifs.as_html(result, what_if(result, tau=tau, liar=liar)),
            json.dumps(result.receipt.as_dict(), indent=2),
            "",
            _links(result, link),
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
            return [*[gr.skip()] * 10, _status(str(error), wrong=True)]
        return [*self._fill(settings), _status("The link's settings are filled in. Run the auction to see it.")]

    def _fill(self, settings: Settings) -> list[Any]:
        auction = self._auctions[settings.model]
        return [
            settings.model, settings.question,
            gr.Dataframe([list(row) for row in settings.agents], visible=_has_table(auction)),
            *_sliders(settings), settings.rule, settings.seed, gr.Button(visible=_has_table(auction)),
            _about_others(auction),
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
    message = _wrong(str(error))
    return [gr.HTML(message if field == one else "", visible=field == one) for one in ("question", "agents", "seed")]


def _failure(message: str) -> list[Any]:
    return [*_alerts(None), _status(message, wrong=True), *[gr.skip()] * 11]


def _status(message: str, *, wrong: bool = False) -> str:
    return _wrong(message) if wrong else f"<p>{escape(message)}</p>"


def _wrong(message: str) -> str:
    return f'<p class="wrong" role="alert">{escape(message)}</p>'


def _recompute(result: AuctionResult | None, tau: float | None, liar: str | None, factor: float | None) -> Any:
    if result is None:
        return "<p>The auction is no longer kept. Run it again.</p>"
    if tau is None or factor is None:  # a number that is being written
        return gr.skip()
    try:
        return what_ifs.as_html(result, what_if(result, tau=tau, liar=liar or "", factor=factor))
    except AuctionError as error:
        return _wrong(str(error))


def _verification(receipt: str, change: str = "") -> str:
    """Return whether a receipt holds, and what differs."""
    verification = verify(receipt)
    before = f"<p>Changed {escape(change)}.</p>" if change else ""
    if verification.ok:
        return f'{before}<p class="right">✓ Valid: everything follows from the rest of the receipt.</p>'
    items = "".join(f"<li>{escape(str(one))}</li>" for one in verification.differences[:_DIFFERENCES])
    more = len(verification.differences) + verification.more - _DIFFERENCES
    items += f"<li>and {more} more</li>" if more > 0 else ""
    return (
        f'{before}<p class="wrong">✗ Refused. What does not follow from the rest:</p><ul class="reasons">{items}</ul>'
    )


def _with_changed_digit(receipt: str) -> tuple[str, str]:
    changed, change = changed_digit(receipt)
    return changed, _verification(changed, change)


def _about_others(auction: AuctionRunnable) -> str:
    """Return which agents bid that are not in the table."""
    if not isinstance(auction.agents, Collection):
        return "<p>A function or directory chooses the agents for each question, so they cannot be edited here.</p>"
    others = [
        f"{escape(agent.name)} ({escape(type(agent.reward).__name__)})"
        for agent in auction.agents
        if not _mentions_of(agent)
    ]
    return f"<p>These bid, too, and cannot be edited here: {', '.join(others)}.</p>" if others else ""


def _links(result: AuctionResult, link: str) -> str:
    """Return the link that repeats the auction, and the receipt as a file. Neither is stored on the server."""
    receipt = b64encode(json.dumps(result.receipt.as_dict(), indent=2).encode()).decode()
    name = f"receipt-{result.auction_id}.json"
    return (
        f'<ul class="links"><li><a download="{escape(name)}" href="data:application/json;base64,{receipt}">'
        f'Download the receipt</a></li><li><a href="#{escape(link)}">Link to this auction</a>, with its seed, '
        f"{result.seed}: whoever opens it sees the question, the agents and their values</li></ul>"
    )


def _result_html(result: AuctionResult) -> str:
    """Return the reply, the agents and the candidates."""
    sponsors = ", ".join(agent.name for agent in result.sponsors)
    disclosure = result.disclosure or (f"Sponsored by {sponsors}." if sponsors else "Not sponsored.")
    notes = [*result.warnings, *(why_left_out(out.as_dict()) for out in result.left_out)]
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    winner, agents = result.settlement.winner, _agents_that_moved(result)
    order = sorted(range(len(result.candidates)), key=lambda j: -result.settlement.probabilities[j])
    first = [*order[:_CARDS], *(j for j in order[_CARDS:] if j == winner)]
    cards, others = ([_card(result, j, agents) for j in some] for some in (first, [j for j in order if j not in first]))
    more = f"<details><summary>{len(others)} less likely replies</summary><ol>{''.join(others)}</ol></details>"
    return (
        f'<section class="reply" aria-label="Reply"><h3>Reply</h3><blockquote>{escape(result.text)}</blockquote>'
        f"<p>{escape(disclosure)}</p></section>{f'<ul>{items}</ul>' if notes else ''}"
        f"{_agents_table(result, agents) if agents else '<p>No agent took part.</p>'}"
        f'<h3>Candidates</h3><ol class="cards">{"".join(cards)}</ol>{more if others else ""}'
    )


def _agents_that_moved(result: AuctionResult) -> list[int]:
    """Return the agents that moved the draw most, in the auction's order: all of them, unless they are many."""
    most = sorted(range(len(result.agents)), key=lambda i: -result.settlement.influences[i])[:_AGENTS]
    return sorted(most)


def _card(result: AuctionResult, j: int, agents: Sequence[int]) -> str:
    candidate, drawn = result.candidates[j], j == result.settlement.winner
    rewards = "".join(
        f"<div><dt>{escape(result.agents[i].name)}</dt><dd>{result.reports[i].rewards[j]:g}</dd></div>" for i in agents
    )
    times = "once" if candidate.draws == 1 else f"{candidate.draws} times"
    component = escape(candidate.component)
    excluded = ", forbidden by the platform's filter" if candidate.excluded else ""
    return (
        f'<li class="card{" drawn" if drawn else ""}">{"<strong>★ Drawn</strong>" if drawn else ""}'
        f'<p class="text">{escape(candidate.message.text)}</p>{bar(float(result.settlement.probabilities[j]))}'
        f'<p class="origin">Came {times}, from {component}{excluded}</p>'
        f'<dl class="rewards" aria-label="Rewards">{rewards}</dl></li>'
    )


def _agents_table(result: AuctionResult, agents: Sequence[int]) -> str:
    unit = f" ({escape(result.currency)})" if result.currency else ""
    heads = ("agent", f"pays{unit}", "expected payment", "contribution", "influence", "report")
    head = "".join(f'<th scope="col">{one}</th>' for one in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(one.agent)}</th><td>{one.charge if one.pays else "never pays"}</td>'
        f"<td>{one.expected_payment:.4f}</td><td>{one.contribution:.4f}</td><td>{one.influence:.1%}</td>"
        f"<td>{one.status}</td></tr>"
        for one in map(result.explain().agents.__getitem__, agents)
    )
    title = with_count("Agents", len(agents), len(result.agents), "that moved the draw most")
    return (
        f'<h3 id="payments">{title}</h3><div class="scrolls" tabindex="0" role="region" aria-labelledby="payments">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
