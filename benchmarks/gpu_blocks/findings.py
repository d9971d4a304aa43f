"""What a block finds: a line for each finding, and a JSON file that is whole at any moment."""

import gc
import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nnunet_mn.bridge.files import write_whole

FAILED = "FAILED"
LINES = 8  # of a traceback


class Findings:
    """The findings of one block.

    Args:
        block: its name.
        file: for the findings. Another process reads it, even if this one dies.
    """

    def __init__(self, block: str, file: Path) -> None:
        self.block, self.file = block, file
        self.found: dict[str, Any] = {}

    def note(self, key: str, **values: Any) -> None:
        """Keep a finding, and print it in one line."""
        self.found[key] = values
        write_whole(self.file, json.dumps(self.found, default=str))
        shown = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in values.items())
        print(f"{self.block}: {key}: {shown}", flush=True)

    @contextmanager
    def attempt(self, key: str) -> Iterator[None]:
        """Do one part of a block. Its error is a finding, and the next part follows."""
        try:
            yield
        except Exception as error:
            tail = traceback.format_exc().strip().splitlines()[-LINES:]
            self.note(f"{key} {FAILED}", error=f"{type(error).__name__}: {error}"[:500], tail=tail)
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
