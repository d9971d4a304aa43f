"""Skipped updates, with the cases of their batches."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from nnunet_mn.cotraining import Student
from nnunet_mn.errors import MNError

MOST_SKIPPED = 0.1  # of an epoch's updates
_NAMED = 5  # cases in a message


class Skips:
    """Watches the students of one training for skipped updates.

    Args:
        students: they count their own.
        updates: of each student in an epoch.
        log: takes a line for each skipped update.
    """

    def __init__(self, students: Sequence[Student], *, updates: int, log: Callable[[str], None]) -> None:
        self.students, self.updates, self.log = students, updates, log
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Count from zero."""
        self._seen = [student.skipped for student in self.students]
        self._n = [0 for _ in self.students]
        self._cases: list[Counter[str]] = [Counter() for _ in self.students]

    def has_new(self) -> bool:
        """Whether a student has skipped an update since the last look."""
        return self._seen != [student.skipped for student in self.students]

    def look(self, cases: Iterable[str]) -> None:
        """Log the updates skipped since the last look.

        Args:
            cases: of the batch, on all ranks.

        Raises:
            MNError: when a student has skipped more than a tenth of an epoch's updates, and more than one.
        """
        names = sorted(set(cases))
        for i, student in enumerate(self.students):
            if student.skipped == self._seen[i]:
                continue
            self._seen[i] = student.skipped
            self._n[i] += 1
            self._cases[i].update(names)
            self.log(
                f"WARNING: an update of the {student.name} network was skipped, since its loss or gradient was not "
                f"finite; the batch held {', '.join(names)}"
            )
            if self._n[i] > max(1, MOST_SKIPPED * self.updates):  # one is never too many
                raise MNError(self._refusal(i))

    def _refusal(self, i: int) -> str:
        most = ", ".join(f"{name} ({n} times)" for name, n in self._cases[i].most_common(_NAMED))
        name = self.students[i].name
        return (
            f"the loss or gradient of the {name} network was not finite in {self._n[i]} of the epoch's {self.updates} "
            f"updates, more than a tenth; their batches held {most}: look for NaN or extreme intensities in these "
            f"images, or lower nnUNet_mn_lr_{name.lower()}"
        )
