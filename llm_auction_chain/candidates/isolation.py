"""Runs below an auction's: what streams, graphs around and tracers hear of calls whose replies may lose."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, patch_config, set_config_context

__all__ = ["hidden", "quiet", "unheard"]

_HIDDEN = "nostream"  # LangGraph's own tag
# By name, as langgraph is optional: how a graph hands its calls to the graphs within, and where in them it stands.
_GRAPHS = "__pregel_"
_SAVER, _RUNTIME = "__pregel_checkpointer", "__pregel_runtime"
_PLACE = frozenset({"checkpoint_ns", "checkpoint_id", "checkpoint_map"})
_SHOWS_STREAMS = "tap_output_iter"  # what every handler has that feeds astream_events, astream_log or LangGraph


@contextmanager
def unheard(config: RunnableConfig) -> Iterator[tuple[RunnableConfig, Context]]:
    """Yield the config without callbacks, and a context in which nobody hears of what a model calls without a config.

    LangChain would take callbacks from the ambient config, from its hooks and from LangSmith's settings.
    """
    from langchain_core.tracers import context as tracers  # these two take their time to import
    from langsmith import tracing_context

    silent = patch_config(config)
    silent["callbacks"] = []
    with tracing_context(enabled=False), set_config_context(silent) as context:
        for hook, *_ in getattr(tracers, "_configure_hooks", ()):  # of get_usage_metadata_callback, and its like
            context.run(hook.set, None)
        yield silent, context


def hidden(config: RunnableConfig | None) -> RunnableConfig:
    """Return the config for child calls, whose replies may lose: no stream shows them, no graph around saves them.

    A graph that is called with it is nobody's subgraph: it takes no part in the streams, checkpoints and resuming of
    the graph around. What it keeps of that one is context and store, and a stream writer that writes nowhere.
    """
    child = quiet(config)
    given = child.get("configurable", {})
    kept = {name: value for name, value in given.items() if not name.startswith(_GRAPHS) and name not in _PLACE}
    if _SAVER in given:
        kept[_SAVER] = None  # where it is missing, a graph saves with its own, all candidates in one thread
    if (runtime := given.get(_RUNTIME)) is not None:
        kept[_RUNTIME] = runtime.override(stream_writer=_nowhere)
    child["configurable"] = kept
    return child


def _nowhere(_: Any) -> None:
    """Write to no stream."""


def quiet(config: RunnableConfig | None) -> RunnableConfig:
    """Return the config for child calls that no message stream shows; tracers hear of them still.

    LangGraph and `astream_events` listen by handlers; those are left out, as are those that no child inherits.
    LangGraph's own tag stands beside.
    """
    config = ensure_config(config)
    child = patch_config(config)
    child["tags"] = [*(tag for tag in config.get("tags", []) if tag != _HIDDEN), _HIDDEN]
    heard = config.get("callbacks")
    if isinstance(heard, BaseCallbackManager):
        manager = heard.copy()
        inherited = [handler for handler in heard.inheritable_handlers if not hasattr(handler, _SHOWS_STREAMS)]
        manager.set_handlers(inherited, inherit=True)
        child["callbacks"] = manager
    elif heard is not None:
        child["callbacks"] = [handler for handler in heard if not hasattr(handler, _SHOWS_STREAMS)]
    return child
