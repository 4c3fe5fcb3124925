"""The parts of scripts/prepare_data.py; Python's standard library only."""


class DataError(Exception):
    """What the user can act on; printed as one line. Status 2: a mistake in the command."""

    def __init__(self, message, status=1):
        super().__init__(message)
        self.status = status
