"""The last line of a failed command: one sentence for the user, in the training's main log too."""

import functools
import multiprocessing
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

from nnunet_mn.errors import LastWordError, MNError

MOST_TOLD = 4000  # characters; a pipe takes 64 KiB, and beyond it a worker would wait for a reader

Method = TypeVar("Method", bound=Callable[..., Any])


def last_word(method: Method) -> Method:
    """Wrap a trainer's or planner's method: an MNError ends nnU-Net's command with its sentence, not a traceback."""

    @functools.wraps(method)
    def wrapped(owner: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(owner, *args, **kwargs)
        except LastWordError:
            raise
        except MNError as error:
            if hasattr(owner, "log_file"):  # a planner has none
                owner.print_to_log_file(f"ERROR: {error}", also_print_to_console=False)
            raise LastWordError(str(error)) from error

    return cast(Method, wrapped)


class Failure(NamedTuple):
    """How a loader's worker ended: a sentence for the user if there is one, and the traceback."""

    sentence: str | None
    traceback: str


class WorkerFailures:
    """Messages from loaders' workers, sent from their processes before they end."""

    def __init__(self) -> None:
        self._queue: Any = multiprocessing.SimpleQueue()

    def tell(self, error: Exception) -> None:
        """Send an error to the trainer. A worker calls this when it fails."""
        sentence = str(error)[:MOST_TOLD] if isinstance(error, MNError) else None
        told = "".join(traceback.format_exception(error))
        self._queue.put((sentence, told[-MOST_TOLD:]))

    def first(self) -> Failure | None:
        """The first message, or None.

        Later ones are not read: one may have been cut off in the middle, and reading would wait for its rest.
        """
        return None if self._queue.empty() else Failure(*self._queue.get())
