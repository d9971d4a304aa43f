"""What goes wrong in a training is told in its main log, and to the user last of all."""

import functools
import multiprocessing
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

from nnunet_mn.errors import LastWordError, MNError

Method = TypeVar("Method", bound=Callable[..., Any])


def last_word(method: Method) -> Method:
    """Let a trainer's method end nnU-Net's command with the sentence of an MNError, without a traceback."""

    @functools.wraps(method)
    def wrapped(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(trainer, *args, **kwargs)
        except LastWordError:
            raise
        except MNError as error:
            if hasattr(trainer, "log_file"):
                trainer.print_to_log_file(f"ERROR: {error}", also_print_to_console=False)
            raise LastWordError(str(error)) from error

    return cast(Method, wrapped)


class Failure(NamedTuple):
    """How a loader's worker ended: a sentence for the user if there is one, and the traceback."""

    sentence: str | None
    traceback: str


class WorkerFailures:
    """What loaders' workers, which are other processes, have to say before they end."""

    def __init__(self) -> None:
        self._queue: Any = multiprocessing.SimpleQueue()

    def tell(self, error: Exception) -> None:
        """Called in a worker when it fails."""
        sentence = str(error) if isinstance(error, MNError) else None
        self._queue.put(tuple(Failure(sentence, "".join(traceback.format_exception(error)))))

    def heard(self) -> list[Failure]:
        """All that was told so far."""
        found = []
        while not self._queue.empty():
            found.append(Failure(*self._queue.get()))
        return found
