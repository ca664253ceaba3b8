"""A bar on standard error, in a shell or a notebook, that shows how far an auction or an experiment is."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol, TypeVar

from llm_auction_chain.errors import MissingDependencyError
from llm_auction_chain.validators import refuse

__all__ = ["progress_hook"]

P = TypeVar("P", bound="_Counts")


class _Counts(Protocol):
    @property
    def label(self) -> str: ...
    @property
    def note(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...


@contextmanager
def progress_hook(*, progress: bool | Callable[[P], None] | None) -> Iterator[Callable[[P], None] | None]:
    """Yield what to call with each count: a bar for True, nothing for False and None, else the function itself.

    Each label has a bar of its own. The last is closed at the end of the block, after an error too.

    Raises:
        ConfigurationError: it is none of these.
        MissingDependencyError: tqdm is not installed.
    """
    if progress is None or progress is False:
        yield None
    elif progress is not True:
        if not callable(progress):
            raise refuse("progress", "True, False or a function of a Progress", progress)
        yield progress
    else:
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise MissingDependencyError(
                "A progress bar needs tqdm: pip install 'llm-auction-chain[progress]'"
            ) from error
        with ExitStack() as bars:
            label, bar = None, None

            def show(count: P) -> None:
                nonlocal label, bar
                if bar is None or count.label != label:
                    bars.close()
                    label = count.label
                    bar = bars.enter_context(tqdm(desc=label, total=count.total, leave=None, miniters=0))
                if count.total != bar.total:
                    bar.reset(total=count.total)
                bar.set_postfix_str(count.note, refresh=False)
                bar.update(count.done - bar.n)

            yield show
