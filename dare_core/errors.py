"""What can go wrong, in the user's words.

Every error a user can cause or mend derives from :class:`DareError`. Its message is one line that says what was
wrong, where, and what to do; the command line prints it and exits with status 2. Anything else that escapes is named by
its type there, and shows its traceback with ``--debug``.
"""

from typing import Final

#: What torch says when a CPU's memory is full or an accelerator's library finds none, and Python of a new thread.
_OUT_OF_MEMORY: Final = ("out of memory", "DefaultCPUAllocator", "can't start new thread")


class DareError(Exception):
    """A failure that the reader of the message can mend."""


class SettingError(DareError):
    """A setting, a domain file or a command-line option has a value that is not allowed."""


class InputError(DareError):
    """A file or row that was handed in cannot be read as what it should be."""


class SourceError(DareError):
    """The source tables are missing, unreachable, or lack a column that the domain file names."""


class ProgramMissingError(DareError):
    """A program that must be installed beside Python, such as Java, was not found or did not work."""


class ModelError(DareError):
    """A model, tokenizer or encoder is not there, or is of a kind that the engine cannot run."""


class EndpointError(DareError):
    """The server that writes texts does not answer. Another try may find that it does."""


class PoolError(DareError):
    """A retrieval pool is missing, damaged, or was built with another tokenizer."""


class WarehouseError(DareError):
    """The warehouse cannot be reached, lacks the ``vector`` extension, or has another schema version."""


class RunInUseError(DareError):
    """Another process is at the same run. Once it has ended, another try goes on."""


class QualityError(DareError):
    """Source tables, texts or features are not what they must be, or too many texts failed validation."""


class StorageError(DareError):
    """A file cannot be written: the disk is full, a limit is reached, or the folder may not be written to."""


class OutOfMemoryError(DareError):
    """Model and texts did not fit into memory. Another try may find more of it free."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of torch or Python says that memory is full."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch
        return True
    return any(sign in str(error) for sign in _OUT_OF_MEMORY)
