"""`map_auctions`: an auction for each row of a Ray Dataset, on any number of machines."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from llm_auction_chain.agents import AGENTS_OF_CALL, Agent
from llm_auction_chain.errors import ConfigurationError, MissingDependencyError
from llm_auction_chain.interfaces.base import AuctionBase
from llm_auction_chain.interfaces.runnable import AuctionRunnable
from llm_auction_chain.messages import json_of
from llm_auction_chain.validators import refuse, text, whole_number

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

    from llm_auction_chain.auction.metadata import AuctionMetadata

__all__ = ["map_auctions"]


def map_auctions(
    dataset: "Dataset",
    make_auction: Callable[[], AuctionRunnable],
    *,
    workers: int | tuple[int, int],
    prompt: str = "prompt",
    key: str = "key",
    agents: str = "agents",
    agents_of: Callable[[Any], Sequence[Agent]] | None = None,
    batch_size: int = 16,
    num_cpus: float = 0.25,
    **options: Any,
) -> "Dataset":
    """Hold an auction for each row of a Ray Dataset, in a pool of Ray actors.

    Every row has an idempotency key, so a row is charged once however often Ray computes it: after a node has died, or
    when the whole job runs again. A row that fails becomes a row with its error, and the others go on.

    The rows keep their columns and get six more, all of them null where they do not apply:

    - `reply`: the text of the drawn reply.
    - `payments`: what each agent pays for it, as `{agent, owner, amount}`; the amount is a decimal in digits.
    - `auction_id`: of the auction in the ledger.
    - `charge`: the number of its booking.
    - `metadata`: the whole outcome as JSON, `response_metadata["auction"]` of the reply.
    - `error`: class and message of what the auction raised.

    ```python
    import ray
    from llm_auction_chain import Agent, AuctionRunnable, map_auctions


    def make_auction():
        from llm_auction_chain.testing import MarkovChatModel

        agents = [Agent("B", lambda prompt, reply: 2.0 * reply.text.count("b"))]
        return AuctionRunnable(model=MarkovChatModel(), agents=agents, n_candidates=8)


    questions = ray.data.from_items([{"key": "request 1", "prompt": "Say something"}])
    (row,) = map_auctions(questions, make_auction, workers=1).take_all()
    assert row["error"] is None and row["payments"][0]["agent"] == "B"
    ```

    Args:
        dataset: the rows. Nothing runs until the result is read or written, as always in Ray Data.
        make_auction: returns the auction, with its model and its ledger. Each actor calls it once.
        workers: how many actors; a pair is the fewest and the most.
        prompt: the column of prompts: texts, or lists of messages as `{role, content}`.
        key: the column of idempotency keys, random texts. Rows of one key and prompt are one auction, charged once.
        agents: the column that `agents_of` reads.
        agents_of: returns the agents of a row from its value in that column; the actors call it. None: the auction's
            own agents bid in every row.
        batch_size: how many auctions an actor holds at once, in threads.
        num_cpus: logical CPUs that an actor takes. A fraction is enough where the model is a server.
        **options: for `Dataset.map_batches`, such as `num_gpus` or `runtime_env`.

    Raises:
        MissingDependencyError: Ray is not installed.
        ConfigurationError: a setting is invalid. In an actor, it ends the job: `make_auction` returns something else,
            or an auction whose ledger does not keep replies.
    """
    try:
        from ray.data import ActorPoolStrategy
    except ImportError as error:
        raise MissingDependencyError(
            "map_auctions needs the ray extra: pip install 'llm-auction-chain[postgresql,ray]'"
        ) from error
    if isinstance(make_auction, AuctionBase) or not callable(make_auction):
        hint = "Each actor calls it, because models and ledgers cannot be sent to another process."
        raise refuse("make_auction", "a function that returns an AuctionRunnable", make_auction, hint)
    rows = whole_number("batch_size", batch_size, least=1)
    least, most = (
        whole_number("workers", one, least=1) for one in (workers if isinstance(workers, tuple) else (workers, workers))
    )
    return dataset.map_batches(
        _Worker,
        fn_constructor_args=(make_auction, (prompt, key, agents), agents_of),
        compute=ActorPoolStrategy(min_size=least, max_size=most),
        batch_size=rows,
        batch_format="pyarrow",
        num_cpus=num_cpus,
        udf_modifying_row_count=False,
        **options,
    )


class _Worker:
    """An actor: one auction, which answers the rows of a batch at the same time."""

    def __init__(
        self,
        make_auction: Callable[[], AuctionRunnable],
        columns: tuple[str, str, str],
        agents_of: Callable[[Any], Sequence[Agent]] | None,
    ) -> None:
        auction = make_auction()
        if not isinstance(auction, AuctionBase):
            raise refuse("make_auction", "a function that returns an AuctionRunnable", auction)
        ledger = auction.billing.ledger
        if ledger is not None and not getattr(ledger, "keep_replies", False):
            raise ConfigurationError(
                "The ledger of auctions on Ray must keep replies: Ledger(..., keep_replies=True). Ray computes rows "
                "again that were charged already, and they must get the replies that they were charged for."
            )
        self._auction, self._agents_of, self._columns = auction, agents_of, columns

    def __call__(self, batch: "pa.Table") -> "pa.Table":
        """Return the rows with the columns of their auctions."""
        import pyarrow as pa

        rows = batch.select(self._columns if self._agents_of else self._columns[:2]).to_pylist()
        with ThreadPoolExecutor(max_workers=max(1, len(rows))) as threads:
            answers = pa.Table.from_pylist(list(threads.map(self._answer, rows)), schema=_schema())
        kept = batch.drop_columns([name for name in batch.column_names if name in answers.column_names])
        for name in answers.column_names:
            kept = kept.append_column(name, answers.column(name))
        return kept

    def _answer(self, row: dict[str, Any]) -> dict[str, Any]:
        prompt, key, agents = self._columns
        try:
            configurable: dict[str, Any] = {"idempotency_key": text(key, row[key])}
            if self._agents_of is not None:
                configurable[AGENTS_OF_CALL] = self._agents_of(row[agents])
            reply = self._auction.invoke(row[prompt], {"configurable": configurable})
        except Exception as error:  # noqa: BLE001 - of a model, an agent, the ledger: the other rows go on
            return {"error": _fitting(f"{type(error).__name__}: {error}")}
        metadata: AuctionMetadata = reply.response_metadata["auction"]
        return {
            "reply": _fitting(reply.text),
            "payments": [
                {"agent": one["agent"], "owner": one["owner"], "amount": one["amount_decimal"]}
                for one in metadata["payments"]
                if one["pays"] and "per_click" not in one
            ],
            "auction_id": metadata["auction_id"],
            "charge": metadata["charge"] and metadata["charge"]["seq"],
            "metadata": json_of(metadata),
        }


def _fitting(value: str) -> str:
    """Return a text with half surrogates escaped: they fit into no column."""
    return value.encode(errors="backslashreplace").decode()


def _schema() -> "pa.Schema":
    """Return the columns that are added: the same types in every batch, also where all of its rows failed."""
    import pyarrow as pa

    payment = pa.struct([("agent", pa.string()), ("owner", pa.string()), ("amount", pa.string())])
    return pa.schema(
        [
            ("reply", pa.string()),
            ("payments", pa.list_(payment)),
            ("auction_id", pa.string()),
            ("charge", pa.int64()),
            ("metadata", pa.string()),
            ("error", pa.string()),
        ]
    )
