"""One training owns the folder of its fold. A second start is refused. The file of a dead one is taken over."""

import atexit
import json
import os
import socket
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from nnunet_mn.errors import MNError

NAME = "training.lock"
WRITING_S = 2.0  # a file empty for longer is left from a killed start or a full disk
SETTLING_S = 0.2  # another start that saw a dead owner's file may still move this one away
TRIES = 10


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A training process.

    Args:
        host: for messages.
        place: where process numbers mean the same: one machine, and one container in it.
        boot: of the machine.
        pid, began: of the process; a later one may get the same number.
        since: the time of its start, for messages.
        job, restarts: of SLURM, which never runs a job twice at once.
    """

    host: str
    place: str
    boot: str
    pid: int
    began: str
    since: str
    job: str
    restarts: int

    @classmethod
    def here(cls) -> "Owner":
        """The record of this process."""
        host, pid = socket.gethostname(), os.getpid()
        return cls(
            host=host,
            place=f"{host} {_network_card()} {_link('/proc/self/ns/pid')}",
            boot=_text("/proc/sys/kernel/random/boot_id"),
            pid=pid,
            began=_began(pid),
            since=datetime.now().astimezone().isoformat(" ", "seconds"),
            job=os.environ.get("SLURM_JOB_ID", ""),
            restarts=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        )

    def is_gone(self, here: "Owner") -> bool:
        """Whether this owner has ended, as far as another process can tell."""
        if self.place != here.place:
            return bool(self.job) and self.job == here.job and self.restarts < here.restarts
        return self.boot != here.boot or self.pid == here.pid or not _runs(self.pid, self.began)


class FoldLock:
    """The file with the owner of a fold's folder.

    The file is made in one step that succeeds for one process alone, on network file systems too. It needs no other
    kind of lock.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / NAME
        self._mine: Owner | None = None

    def acquire(self) -> None:
        """Own the folder until `release` or the end of this process.

        Raises:
            MNError: if another training owns it, or the file cannot be written.
        """
        here = Owner.here()
        try:
            for _ in range(TRIES):
                if self._create(here):
                    self._mine = here
                    atexit.register(self.release)
                    time.sleep(SETTLING_S)
                    if _owner(self._read()) == here:
                        return
                else:
                    self._remove_dead(here)
        except OSError as error:
            raise MNError(
                f"the lock {self.file} cannot be written or read ({error}): free some space, or check the rights"
            ) from error
        raise MNError(f"several trainings start in {self.file.parent} at once: start one of them")

    def release(self) -> None:
        """Give the folder back, if this process owns it."""
        if self._mine is not None and self._mine.pid == os.getpid() and _owner(self._read()) == self._mine:
            self.file.unlink(missing_ok=True)
        self._mine = None

    def _create(self, here: Owner) -> bool:
        try:
            stream = self.file.open("x", encoding="utf-8")
        except FileExistsError:
            return False
        try:
            with stream:
                json.dump(asdict(here), stream)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            self.file.unlink(missing_ok=True)
            raise
        return True

    def _remove_dead(self, here: Owner) -> None:
        """Remove the file if its owner has ended. Raise an MNError if it runs, or may run."""
        content = self._read()
        until = time.monotonic() + WRITING_S
        while _owner(content) is None and time.monotonic() < until:
            time.sleep(0.1)
            content = self._read()
        owner = _owner(content)
        if owner is not None and not owner.is_gone(here):
            raise MNError(self._refusal(owner, here))
        mine = self.file.with_name(f"{NAME}.{here.host}.{here.pid}.tmp")
        try:
            self.file.rename(mine)  # of several starts one gets it
        except FileNotFoundError:
            return
        if _text(mine) == content:
            mine.unlink()
        else:  # another start was faster, and this is its file
            self._put_back(mine)

    def _put_back(self, file: Path) -> None:
        """Undo a rename, unless a third start has made a file meanwhile. A rename would remove that one."""
        try:
            os.link(file, self.file)
        except FileExistsError:
            pass
        except FileNotFoundError:  # the owner has removed what killed starts left
            return
        except OSError:  # a file system without hard links
            file.rename(self.file)
            return
        file.unlink()

    def _refusal(self, owner: Owner, here: Owner) -> str:
        told = (
            f"a training already runs in {self.file.parent}: process {owner.pid} on {owner.host} since {owner.since}; "
            f"wait for its end, or stop it"
        )
        return told if owner.place == here.place else f"{told}; if it no longer runs there, delete {self.file}"

    def _read(self) -> str:
        try:
            return self.file.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""


def _owner(content: str) -> Owner | None:
    try:
        return Owner(**json.loads(content))
    except (ValueError, TypeError):
        return None


def _runs(pid: int, began: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return _began(pid) in (began, "")  # of another user, whose processes may be hidden
    return _began(pid) == began


def _began(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty if it has ended or the system does not say."""
    state, *fields = _text(f"/proc/{pid}/stat").rpartition(") ")[2].split() or [""]  # a name may hold spaces
    return fields[18] if fields and state not in "ZX" else ""


def _network_card() -> str:
    """Its number; empty without one: python then draws a random number with this bit set."""
    number = uuid.getnode()
    return "" if number >> 40 & 1 else f"{number:x}"


def _text(file: str | Path) -> str:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _link(file: str) -> str:
    try:
        return os.readlink(file)
    except OSError:
        return ""
