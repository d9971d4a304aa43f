"""A memory of findings about preprocessed cases. It lies beside the folder of the unlabeled ones."""

import contextlib
import json
from pathlib import Path
from typing import Any

from nnunet_mn.bridge.cases.preprocessed import state_of
from nnunet_mn.bridge.files import write_whole


class Findings:
    """Findings about the preprocessed cases of a folder. A finding holds until the size or time of a file changes.

    Args:
        folder: of preprocessed cases, labeled or unlabeled.
        unlabeled: the folder of the unlabeled ones. Our own files have names like it.
    """

    def __init__(self, folder: Path, *, unlabeled: Path) -> None:
        kind = "unlabeled" if folder == unlabeled else "labeled"
        self.folder, self.file = folder, unlabeled.with_name(f"{unlabeled.name}.looks-{kind}.json")
        self._found: dict[str, dict[str, Any]] = {}
        self._changed = False
        with contextlib.suppress(OSError, ValueError, AttributeError):
            content = json.loads(self.file.read_bytes())
            self._found = {name: found for name, found in content.items() if isinstance(found, dict)}

    def get(self, name: str, topic: str) -> Any:
        """A finding about a case, or None."""
        found = self._found.get(name, {})
        return found.get(topic) if found.get("stamp") == state_of(self.folder, name) else None

    def put(self, name: str, topic: str, finding: Any) -> None:
        """Remember a finding; it must be JSON."""
        stamp = state_of(self.folder, name)
        old = self._found.get(name, {})
        self._found[name] = {**(old if old.get("stamp") == stamp else {}), "stamp": stamp, topic: finding}
        self._changed = True

    def save(self) -> None:
        """Write new findings where that is allowed. Without them the work is done again."""
        if self._changed:
            with contextlib.suppress(OSError):
                write_whole(self.file, json.dumps(self._found))
