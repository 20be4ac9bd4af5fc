"""Errors: each is one line that names what was asked, what was found and what to do about it."""


class LuthierError(Exception):
    """Base of all errors that a user can mend; the command line prints its one line and exits with 2."""

    reason: str | None = None
    """Where the model's architecture is the cause: which (`luthier.host.applicable.Reason`)."""


class OptionError(LuthierError, ValueError):
    """An unknown method, option or value."""


class SiteError(LuthierError, LookupError):
    """A selection of sites that the model does not have, or that would do nothing."""


class ModelError(LuthierError, ValueError):
    """A model that cannot be loaded, is not safe to load, or cannot carry what was asked."""


class DataError(LuthierError, ValueError):
    """Data that is missing, empty, malformed, or does not fit the task."""


class FileFormatError(LuthierError, ValueError):
    """An adaptation file that is damaged, hostile, of another base or of another format."""


class RunError(LuthierError, RuntimeError):
    """A run that cannot start, continue or be resumed."""
