"""The one error that users are meant to read."""


class MNError(RuntimeError):
    """A mistake that the user can mend; its message is one sentence with the value and the fix."""
