"""Questions of users, and the sponsors that would pay for their replies: 40 that ship with the package, or your own."""

import csv
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from io import StringIO
from itertools import chain, count, zip_longest
from pathlib import Path
from typing import Any

import yaml
from langchain_core.messages import SystemMessage
from langchain_core.runnables import Runnable

from llm_auction_chain.agents import Agent
from llm_auction_chain.candidates import ContextPrompt
from llm_auction_chain.descriptions import descriptions_of
from llm_auction_chain.errors import AuctionWarning, ConfigurationError
from llm_auction_chain.rewards import JudgeReward, LogRatioReward, MentionReward, Reward
from llm_auction_chain.validators import choice, name_of_account, number, refuse, text, whole_number

__all__ = ["FAMILIES", "Question", "Sponsor", "builtin_questions", "load_questions"]

FAMILIES = ("mentions", "log_ratio", "judge")
"""The families of rewards that every sponsor has."""

_MOST_MENTIONS = 3  # of phrases in one reply that are paid
_RUBRIC = "How well does the reply prepare its reader to want what this sponsor offers? The sponsor: {context}"

# The names of fields, in the order in which they are looked for. `load_questions` says where each comes from.
_TEXT = ("text", "query", "prompt", "query_text")
_DOMAIN = ("domain", "meta_topic", "category", "topic_1")
_SPONSORS = ("sponsors", "advertisements", "products", "product")
_NAME = ("name", "item", "advertisement", "ad_title", "product")
_CONTEXT = ("description", "desc", "qualities", "ad_description")
_CATEGORY = ("category", "type")
_OWNER = ("owner", "advertiser")
_CATALOGUE_SPONSORS = 5  # the most that a question takes from a file of sponsors
_LONGEST_CONTEXT = 400  # characters: models read no more
_MOST_PHRASES = 12
# words that say nothing of what is for sale
_COMMON = re.compile("about|also|and|are|for|from|have|how|into|its|make|more|only|that|the|their|this|what|with|your")


@dataclass(frozen=True, kw_only=True)
class Sponsor:
    """An advertiser that would pay for some replies to a question, with a reward of each family.

    Attributes:
        name: unique within its question.
        context: public description, one sentence, which the context prompt shows to the model.
        phrases: words whose mention the sponsor pays for; at least one.
        value: money a mention.
        owner: the payer; None: the sponsor pays itself.
        category: what it trades in; "" is none.
        rubric: what a judge judges; "" asks how well the reply prepares its reader to want what `context` offers.

    Raises:
        ConfigurationError: a field is blank, out of range or of another type.

    >>> from langchain_core.messages import AIMessage
    >>> sponsor = Sponsor(name="FretHouse", context="FretHouse sells guitars.", phrases=("guitar", "strings"), value=2)
    >>> sponsor.reward("mentions").score([], [AIMessage("A guitar has strings."), AIMessage("Sing!")])
    [4.0, 0.0]
    """

    name: str
    context: str
    phrases: tuple[str, ...]
    value: float = 1.0
    owner: str | None = None
    category: str = ""
    rubric: str = ""

    def __post_init__(self) -> None:
        """Check the fields."""
        object.__setattr__(self, "name", name_of_account("The name of a sponsor", self.name))
        text(f"context of {self.name!r}", self.context)
        if isinstance(self.phrases, str) or not isinstance(self.phrases, Collection) or not self.phrases:
            raise refuse(f"phrases of {self.name!r}", "a list of at least one phrase", self.phrases)
        object.__setattr__(self, "phrases", tuple(text(f"A phrase of {self.name!r}", each) for each in self.phrases))
        object.__setattr__(self, "value", number(f"value of {self.name!r}", self.value))
        if self.owner is not None:
            name_of_account(f"owner of {self.name!r}", self.owner)
        name_of_account(f"category of {self.name!r}", self.category, empty=True)
        text(f"rubric of {self.name!r}", self.rubric, empty=True)
        self.reward("mentions")

    def reward(self, family: str, *, judge: Runnable[Any, Any] | None = None) -> Reward:
        """Return the sponsor's reward of a family.

        Args:
            family: "mentions": `value` for each of up to three mentions of its phrases. "log_ratio": 1 for each nat of
                `log pi_i(reply) - log pi_ref(reply)`, where pi_i is the model under a context prompt that describes
                this sponsor alone. "judge": up to `3 * value`, as a judge's level by the rubric.
            judge: of the family "judge": a chat model with structured output, or a decision model.

        Raises:
            ConfigurationError: there is no such family, or the family "judge" has no judge.
        """
        if choice("family", family, FAMILIES) == "mentions":
            return MentionReward(self.phrases, value=self.value, at_most=_MOST_MENTIONS)
        if family == "log_ratio":
            described = ContextPrompt().describe([SystemMessage("")], descriptions_of([self.context]), 0)
            return LogRatioReward(described[0].text.strip())
        if judge is None:
            expected = "a chat model with structured output, or a decision model"
            raise refuse("judge", expected, judge, "The family 'judge' grades replies with it.")
        rubric = self.rubric or _RUBRIC.format(context=self.context)
        return JudgeReward(judge, rubric, value=_MOST_MENTIONS * self.value)

    def agent(self, family: str, *, judge: Runnable[Any, Any] | None = None) -> Agent:
        """Return the agent that bids for the sponsor with its reward of a family.

        Raises:
            ConfigurationError: as for `reward`.
        """
        categories = (self.category,) if self.category else ()
        reward = self.reward(family, judge=judge)
        return Agent(self.name, reward, owner=self.owner, context=self.context, categories=categories)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A user's question, and the sponsors that bid for its reply.

    Attributes:
        id: short and unique among the questions of an experiment.
        domain: what the question is about; "" is unknown.
        text: what the user asks.
        sponsors: at least one, with names that differ.

    Raises:
        ConfigurationError: a field is blank or of another type, or two sponsors have one name.
    """

    id: str
    domain: str
    text: str
    sponsors: tuple[Sponsor, ...]

    def __post_init__(self) -> None:
        """Check the fields."""
        text("The id of a question", self.id)
        text(f"domain of {self.id!r}", self.domain, empty=True)
        text(f"text of {self.id!r}", self.text)
        wanted = isinstance(self.sponsors, Collection) and all(isinstance(each, Sponsor) for each in self.sponsors)
        if not wanted or not self.sponsors:
            raise refuse(f"sponsors of {self.id!r}", "a list of at least one Sponsor", self.sponsors)
        object.__setattr__(self, "sponsors", tuple(self.sponsors))
        name, times = Counter(each.name for each in self.sponsors).most_common(1)[0]
        if times > 1:
            raise ConfigurationError(f"Two sponsors of {self.id!r} are called {name!r}; names must be unique.")

    def agents(self, family: str, *, judge: Runnable[Any, Any] | None = None) -> tuple[Agent, ...]:
        """Return the sponsors' agents with rewards of a family.

        Raises:
            ConfigurationError: as for `Sponsor.reward`.
        """
        return tuple(each.agent(family, judge=judge) for each in self.sponsors)


def builtin_questions(
    *, domains: Collection[str] | None = None, limit: int | None = None, agents: int | None = None
) -> tuple[Question, ...]:
    """Return the questions that ship with the package: 40, five in each of eight domains, with 2 to 5 sponsors each.

    Domains take turns, so that the first eight questions are of eight domains.

    Args:
        domains: the domains to take questions from, in this order; None is all.
        limit: the most questions; None is all.
        agents: the most sponsors of a question, at least 1; None is all.

    Raises:
        ConfigurationError: a domain is unknown, or a number is below 1.

    >>> [question.id for question in builtin_questions(domains=["food", "travel"], limit=3)]
    ['dinner', 'mountains', 'simple-baking']
    """
    _check_most(limit, agents)
    source = files("llm_auction_chain.experiments") / "questions.yaml"
    by_domain: dict[str, list[Question]] = {}
    for question in _questions(_rows("questions.yaml", source.read_text(encoding="utf-8")), "questions.yaml"):
        by_domain.setdefault(question.domain, []).append(question)
    for domain in by_domain if domains is None else domains:
        choice("domain", domain, tuple(by_domain))
    rounds = zip_longest(*(by_domain[domain] for domain in (by_domain if domains is None else domains)))
    return _shortened((question for each in rounds for question in each if question is not None), limit, agents)


def load_questions(
    path: str | Path, *, sponsors_path: str | Path | None = None, limit: int | None = None, agents: int | None = None
) -> tuple[Question, ...]:
    r"""Return the questions of a file of your own, or of two published datasets as they are.

    **Your own**: JSONL, one question a line, with the fields `id`, `domain`, `text` and `sponsors`, a list with the
    fields of `Sponsor`. The same as a list (or under the key `questions`) in JSON or YAML. `text` and the sponsors'
    `name` are required. An unknown field is an error.

    **Other datasets**: where a question has no field `sponsors`, fields with other names are read too, and all that
    are unknown are ignored. JSONL, JSON, YAML, CSV and TSV are read.

    | | yours | Webis native ads | GEM-Bench |
    |---|---|---|---|
    | question | `text` | `query` (in Touché's task 1: `query.text`) | `prompt`, `query_text` |
    | domain | `domain` | `meta_topic` | `category`, `topic_1` |
    | sponsors | `sponsors` | `advertisements`, or one `advertisement` a row | `product`, or a list under the query |
    | name | `name` | `advertisement`, `item` | `name`, `ad_title` |
    | context | `context` | `qualities` | `description`, `desc`, `ad_description` |
    | category | `category` | `type` | `category` |
    | owner | `owner` | `advertiser` | |

    Rows with the same question are one question with the sponsors of all. A sponsor that is named twice counts once.
    A context that is missing is the name, with the owner; phrases that are missing are the name, the `brand` or the
    `advertiser`, and the name's words.

    With `sponsors_path`, sponsors come from a second file of the same formats. A row there belongs to the question that
    it names by its text, by `query_id`, or, where the row has a `label`, by its `id`. Where it names none, it adds
    details to the sponsor of its name. A question that has no sponsors then gets up to five: those of the category that
    is its domain, or else those that share words with it, rare words first. Questions without any are left out, with
    an `AuctionWarning`.

    Args:
        path: the file; or the folder of GEM-Bench's CA-Prod, with `queries.tsv`, `products.tsv`,
            `cluster_labels.tsv` and `final_balanced_dataset.tsv`, whose pairs with the label 1 are used.
        sponsors_path: a file of sponsors, or None. Webis: `responses-*-labels.jsonl` for `responses-*.jsonl`,
            `*_qualities.csv` for `*_query_pairs.csv`. GEM-Bench: `products.json`, with lists of `names` and `descs` in
            each category, for `prompts.json`, a list of texts.
        limit: the most questions; None is all.
        agents: the most sponsors of a question; None is all.

    Raises:
        ConfigurationError: a file cannot be read, or a row lacks something; the message names the file, the line (in
            JSON and YAML the entry) and what is missing.

    Source of the names. Webis Generated Native Ads: the dataset cards of 2024 (also of Touché's version in JSONL) and
    2025, and the code that writes the CSV files of 2024, whose first column is an index. `query`, `advertisements`,
    `item`, `type` and `qualities`: the code of Touché 2025, task 1 (github.com/touche-webis-de/touche-code). GEM-Bench
    (github.com/Generative-Engine-Marketing/GEM-Bench): the files `prompts.json`, `products.json`, `products.tsv`, those
    of LM-Market (`prompt`, `topic_1`) and the results (`prompt`, `category`, `product`). The other three TSV files
    could not be read: their columns are those that GEM-Bench's loader requires.

    >>> import tempfile
    >>> row = '{"query": "cheap flights", "meta_topic": "vacation", "advertisement": "Aerolark", "label": 1}\n'
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "responses.jsonl")
    ...     _ = path.write_text(row)
    ...     questions = load_questions(path)
    >>> questions[0].domain, questions[0].sponsors[0].phrases
    ('vacation', ('Aerolark',))
    """
    _check_most(limit, agents)
    sponsors = () if sponsors_path is None else _rows_of_path(Path(sponsors_path), bare="name")
    most = _CATALOGUE_SPONSORS if agents is None else agents
    return _shortened(_questions(_rows_of_path(Path(path)), str(path), sponsors, most), limit, agents)


def _shortened(questions: Iterable[Question], limit: int | None, agents: int | None) -> tuple[Question, ...]:
    return tuple(replace(each, sponsors=each.sponsors[:agents]) for each in tuple(questions)[:limit])


def _check_most(limit: int | None, agents: int | None) -> None:
    for name, most in (("limit", limit), ("agents", agents)):
        if most is not None:
            whole_number(name, most, least=1)


@dataclass
class _Draft:
    """A question while its sponsors are collected, by name."""

    id: str
    domain: str
    text: str
    sponsors: dict[str, Sponsor] = field(default_factory=dict)


_Row = tuple[str, Mapping[str, Any]]
"""Where a row stands, for messages, and its fields."""


def _drafts(rows: Iterable[_Row]) -> tuple[list[_Draft], dict[str, _Draft], dict[str, _Draft]]:
    """Return the questions of rows with the sponsors that these name; also by their texts, and by the rows' ids."""
    drafts: list[_Draft] = []
    by_text: dict[str, _Draft] = {}
    by_id: dict[str, _Draft] = {}
    for where, row in rows:
        words, own = _text_of(row), "sponsors" in row
        if words is None:
            raise refuse(where, f"a question with its text under one of {', '.join(_TEXT)}", dict(row))
        if own:
            _refuse_unknown(where, row, [each.name for each in fields(Question)])
        if own or words not in by_text:
            identity = _id_of(row) or re.sub(r"[^\w]+", "-", words.casefold()).strip("-")[:40] or "question"
            if own and identity in by_id:
                raise ConfigurationError(f"{where}: {identity!r} is the id of an earlier question; ids must be unique.")
            drafts.append(_Draft(_unused(identity, by_id), str(_first(row, _DOMAIN) or ""), words))
            by_id[drafts[-1].id] = by_text[words] = drafts[-1]
        by_id.setdefault(_id_of(row), by_text[words])
        for sponsor in _sponsors(where, row):
            by_text[words].sponsors.setdefault(sponsor.name, sponsor)
    return drafts, by_text, by_id


def _questions(
    rows: Iterable[_Row], path: str, sponsor_rows: Iterable[_Row] = (), most: int = _CATALOGUE_SPONSORS
) -> list[Question]:
    """Return the questions of rows, with the sponsors of both."""
    drafts, by_text, by_id = _drafts(rows)
    catalogue: dict[str, Sponsor] = {}
    for where, row in sponsor_rows:
        draft = by_text.get(_text_of(row) or "") or by_id.get(_link_of(row) or "-")
        for sponsor in _sponsors(where, row):
            (catalogue if draft is None else draft.sponsors).setdefault(sponsor.name, sponsor)
    for draft in drafts:
        draft.sponsors = {name: catalogue.get(name, each) for name, each in draft.sponsors.items()}
    _supply([draft for draft in drafts if not draft.sponsors], list(catalogue.values()), most)
    full = [draft for draft in drafts if draft.sponsors]
    if not full:
        hint = "Name sponsors in its rows, or give sponsors_path."
        raise refuse(path, "a file with a question that has sponsors", f"{len(drafts)} without", hint)
    if left := len(drafts) - len(full):
        message = f"{path}: {left} of {len(drafts)} questions have no sponsor and are left out."
        warnings.warn(message, AuctionWarning, stacklevel=3)
    return [
        Question(id=each.id, domain=each.domain, text=each.text, sponsors=(*each.sponsors.values(),)) for each in full
    ]


def _unused(identity: str, ids: Collection[str]) -> str:
    """Return an id that is not among these, with a number behind it where it must be."""
    return next(each for each in chain([identity], (f"{identity}-{k}" for k in count(2))) if each not in ids)


def _sponsors(where: str, row: Mapping[str, Any]) -> list[Sponsor]:
    """Return the sponsors that a row names."""
    value = _first(row, _SPONSORS)
    if "sponsors" in row and not (isinstance(row["sponsors"], list) and row["sponsors"]):
        raise refuse(f"{where}: sponsors", "a list of at least one sponsor", row["sponsors"])
    if isinstance(value, list):
        return [_sponsor(where, each, own="sponsors" in row) for each in value if each is not None]
    if isinstance(value, Mapping):
        return [_sponsor(where, value)]
    return [] if _first(row, _NAME) is None else [_sponsor(where, row)]


def _sponsor(where: str, entry: Any, *, own: bool = False) -> Sponsor:
    """Return a sponsor from a name or from fields; `own` ones are those of `Sponsor`."""
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, Mapping) or _first(entry, _NAME) is None:
        raise refuse(f"{where}: a sponsor", "a name, or fields with a `name`", entry)
    if own:
        _refuse_unknown(where, entry, [each.name for each in fields(Sponsor)])
    name = str(_first(entry, _NAME))
    name = name if own else _one_line(name)[:255].strip()
    owner = _first(entry, _OWNER)
    about = str(_first(entry, _CONTEXT) or (name if own or owner is None else f"{name} by {owner}"))
    if name.casefold() not in about.casefold():
        about = f"{name}: {about}"
    settings = {key: entry[key] for key in ("value", "rubric") if entry.get(key) is not None}
    try:
        return Sponsor(
            name=name,
            context=entry.get("context") or _one_line(about)[:_LONGEST_CONTEXT],
            phrases=entry.get("phrases") or _phrases(name, entry.get("brand", entry.get("advertiser"))),
            owner=_one_line(owner)[:255].strip() if isinstance(owner, str) and not own else owner,
            category=str(_first(entry, _CATEGORY) or ""),
            **settings,
        )
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _phrases(name: str, brand: Any) -> tuple[str, ...]:
    """Return the name, the brand, and the name's words.

    >>> _phrases("Union of Tea Drinkers", None)
    ('Union of Tea Drinkers', 'Union', 'Tea', 'Drinkers')
    """
    words = [word for word in re.findall(r"[^\W\d_]+", name) if word.casefold() in _words(word)]
    return tuple(dict.fromkeys(each for each in (name, _one_line(str(brand or "")), *words) if each))[:_MOST_PHRASES]


def _supply(drafts: Sequence[_Draft], catalogue: Sequence[Sponsor], most: int) -> None:
    """Give questions the sponsors whose category is their domain, or else those that share words with them."""
    holders: dict[str, list[int]] = {}
    by_category: dict[str, list[int]] = {}
    for k, sponsor in enumerate(catalogue):
        by_category.setdefault(sponsor.category.casefold(), []).append(k)
        for word in _words(f"{sponsor.name} {sponsor.context} {sponsor.category}"):
            holders.setdefault(word, []).append(k)
    for draft in drafts:
        own = by_category.get(draft.domain.casefold(), []) if draft.domain else []
        scores = dict.fromkeys(own, 0.0)
        for word in sorted(_words(f"{draft.text} {draft.domain}")):
            for k in holders.get(word, []):
                if not own or k in scores:
                    scores[k] = scores.get(k, 0.0) + math.log1p(len(catalogue) / len(holders[word]))
        best = sorted(scores, key=lambda k: (-scores[k], k))[:most]
        draft.sponsors = {catalogue[k].name: catalogue[k] for k in best}


def _words(words: str) -> set[str]:
    return {word for word in re.findall(r"[^\W\d_]{3,}", words.casefold()) if not _COMMON.fullmatch(word)}


def _one_line(words: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in words).split())


def _first(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    """Return the first of these fields that holds something, or None."""
    return next((row[name] for name in names if row.get(name) not in (None, "") and row[name] == row[name]), None)


def _text_of(row: Mapping[str, Any]) -> str | None:
    value = _first(row, _TEXT)
    value = value.get("text") if isinstance(value, Mapping) else value
    return value.strip() or None if isinstance(value, str) else None


def _id_of(row: Mapping[str, Any]) -> str:
    query = row.get("query")
    value = query.get("id") if isinstance(query, Mapping) else _first(row, ("id", "query_id"))
    return "" if value is None else str(value)


def _link_of(row: Mapping[str, Any]) -> str:
    """Return the id of the question that a row of sponsors names; `id` may be the sponsor's own."""
    return _id_of({"query_id": row.get("query_id"), "id": row.get("id") if "label" in row else None})


def _refuse_unknown(where: str, row: Mapping[str, Any], names: Sequence[str]) -> None:
    if unknown := [key for key in row if key not in names]:
        raise ConfigurationError(f"{where} has an unknown field {unknown[0]!r}. It may have {', '.join(names)}.")


def _rows_of_path(path: Path, *, bare: str = "text") -> Iterator[_Row]:
    """Return the rows of a file, or of the folder of CA-Prod. An entry that is a text alone is the field `bare`."""
    if path.is_dir():
        return _joined(path)
    try:
        return _rows(str(path), path.read_text(encoding="utf-8-sig"), bare)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _rows(path: str, content: str, bare: str = "text") -> Iterator[_Row]:
    """Yield the rows of a file's content, by the ending of its name."""
    ending = path.rpartition(".")[2].lower()
    if ending in ("csv", "tsv"):
        reader = csv.DictReader(StringIO(content, newline=""), delimiter="\t" if ending == "tsv" else ",")
        try:
            yield from ((f"{path}, line {reader.line_num}", row) for row in reader)
        except csv.Error as error:
            raise ConfigurationError(f"{path}, line {reader.line_num} cannot be read: {error}.") from error
        return
    for where, entry in _entries(path, content, ending):
        row = {bare: entry} if isinstance(entry, str) else entry
        if not isinstance(row, Mapping):
            raise refuse(where, "a text, or fields with names", entry)
        yield where, row


def _entries(path: str, content: str, ending: str) -> Iterator[tuple[str, Any]]:
    """Yield the entries of JSONL, JSON or YAML, and where they stand."""
    if ending in ("jsonl", "ndjson"):
        lines = ((f"{path}, line {k}", line) for k, line in enumerate(content.split("\n"), 1) if line.strip())
        yield from ((where, _parsed(where, line, "JSON")) for where, line in lines)
    elif ending in ("json", "yaml", "yml"):
        loaded = _listed(path, _parsed(path, content, "JSON" if ending == "json" else "YAML"))
        yield from ((f"{path}, entry {k}", entry) for k, entry in enumerate(loaded, 1))
    else:
        raise refuse("The file of questions or sponsors", "one of .jsonl, .json, .yaml, .csv and .tsv", path)


def _parsed(where: str, content: str, kind: str) -> Any:
    try:
        return json.loads(content) if kind == "JSON" else yaml.safe_load(content)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigurationError(f"{where} is not {kind}: {error}") from error


def _listed(path: str, loaded: Any) -> list[Any]:
    """Return the entries of a JSON or YAML file in one of the shapes that `load_questions` reads."""
    if isinstance(loaded, Mapping):
        loaded = loaded.get("questions", loaded.get("sponsors", loaded))
    if isinstance(loaded, list):
        return loaded
    if not isinstance(loaded, Mapping):
        raise refuse(path, "a list of questions or sponsors", loaded)
    return list(chain.from_iterable(_listed_under(path, str(key), value) for key, value in loaded.items()))


def _listed_under(path: str, key: str, value: Any) -> list[Any]:
    """Return the entries under a key: a category's columns, a run's questions, or a question's products."""
    if isinstance(value, Mapping) and "names" in value:
        columns = zip_longest(value["names"], value.get("descs", ()))
        return [{"name": name, "desc": about, "category": key} for name, about in columns]
    if isinstance(value, list):
        rows = any(isinstance(each, Mapping) and _text_of(each) for each in value)
        return value if rows else [{"query": key, "products": value}]
    raise refuse(f"{path}: {key!r}", "a list, or columns with `names`", value)


def _joined(folder: Path) -> Iterator[_Row]:
    """Yield a row for each pair of a query and a product with the label 1."""
    tables = {}
    for name, key in (("queries", "query_id"), ("products", "product_id"), ("cluster_labels", "cluster_id")):
        tables[name] = {_key(row.get(key)): row for _, row in _rows_of_path(folder / f"{name}.tsv")}
    for where, pair in _rows_of_path(folder / "final_balanced_dataset.tsv"):
        if _key(pair.get("label")) == "1":
            query = tables["queries"].get(_key(pair.get("original_query_id")))
            product = tables["products"].get(_key(pair.get("original_product_id")))
            if query is None or product is None:
                raise refuse(
                    where, "a pair with an original_query_id and an original_product_id that exist", dict(pair)
                )
            category = tables["cluster_labels"].get(_key(pair.get("cluster_id")), {}).get("cluster_name")
            yield where, {**query, "category": category, "product": {**product, "category": category}}


def _key(value: Any) -> str:
    """Return a number's digits: pandas writes whole numbers as `5.0` in columns with gaps."""
    return str(value).removesuffix(".0")
