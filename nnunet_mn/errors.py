"""The one error for users to read."""


class MNError(RuntimeError):
    """A mistake that the user can correct. Its message says what is wrong, the value, and the fix."""


class LastWordError(MNError, SystemExit):
    """An uncaught MNError. It ends the process with exit code 1 and its sentence instead of a traceback.

    Raised only in calls from nnU-Net's commands to a trainer or planner: it would end an interactive session.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.code = f"ERROR: {sentence}"
