"""One line for whatever ends a command: what a user can mend in its own words, anything else with its type."""

import errno
from typing import Final

from dare_core.errors import DareError, is_out_of_memory

_DEBUG: Final = "; `dare --debug …` shows where"
#: Packages whose errors say what a server or a migration refused, and nothing of ours.
_OF_WAREHOUSE: Final = ("sqlalchemy", "psycopg", "alembic")


def in_words(error: Exception) -> str:
    """What is said of an error that ended a command, in one line."""
    if isinstance(error, DareError):
        return _line(str(error))
    if isinstance(error, OSError) and error.errno is not None:
        return _of_system(error)
    if is_out_of_memory(error):
        return f"memory is full ({_line(str(error))}); use a smaller batch (DARE_BATCH_SIZE), or end other programs"
    if type(error).__module__.partition(".")[0] in _OF_WAREHOUSE:
        from dare_core.warehouse.connection import reason

        return f"the warehouse refused to go on: {reason(error)}{_DEBUG}"
    return f"{type(error).__name__}: {_line(str(error)) or 'no more is known'}{_DEBUG}"


def _of_system(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename is not None else ""
    what = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{where}the disk is full, or a limit on files is reached ({what}); make room and run the same again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}{what}; choose a folder that you may write to, such as by DARE_DATA_DIR"
    return f"{where}{what}{_DEBUG}"


def _line(message: str) -> str:
    """The first line that says anything."""
    return next((line.strip() for line in message.splitlines() if line.strip()), "")
