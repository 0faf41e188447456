"""The errors a user can meet, each with the exit code the command line gives it."""

from __future__ import annotations


class DipFastError(Exception):
    """A run that failed; the message is one line: what, why, what to do.  Exit code 1."""

    exit_code = 1


class UsageError(DipFastError, ValueError):
    """Wrong usage or wrong input, found before anything was written.  Exit code 2."""

    exit_code = 2


class ReplayDiffersError(DipFastError):
    """A model file that does not draw the picture that it was kept for.  Exit code 4."""

    exit_code = 4
