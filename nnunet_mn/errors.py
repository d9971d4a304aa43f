"""The one error that users are meant to read."""


class MNError(RuntimeError):
    """A mistake that the user can mend; its message is one sentence with the value and the fix."""


class LastWordError(MNError, SystemExit):
    """An MNError that nobody catches: it ends the process with exit code 1 and its sentence instead of a traceback.

    Raised where nnU-Net's commands call a trainer or planner, and nowhere else: an interactive session would end with
    it.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.code = f"ERROR: {sentence}"
