"""Runs the programs of ``spark_jobs`` by ``spark-submit``, as a process group that never outlives the call."""

import json
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

from dare_core.config.settings import PROJECT_DIR, Settings
from dare_core.errors import ProgramMissingError, SourceError
from dare_core.storage import credentials
from dare_core.storage.beside import beside

log = logging.getLogger(__name__)

_OLDEST_JAVA: Final = 17

#: A module that Spark starts Java with, and that trimmed runtimes lack.
_JAVA_MODULE: Final = "jdk.incubator.vector"

#: Seconds that Spark gets to end by itself before it is killed.
_GRACE: Final = 5.0

#: Run before the command: the kernel kills it when its starter is gone, however that ended. A starter that was gone
#: before is noticed by the parent's id. What Python ignores, the command must not.
_BOUND: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.execv(sys.argv[2], sys.argv[2:])
"""

#: Java reads and writes the names of files as the locale says: under ``C`` it turns what is not ASCII into ``?``.
_LOCALE: Final = {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}

#: Java's stacks. MLlib's factorization describes each iteration in terms of the one before, and a task reads all of it
#: at once: some 100 KB of stack an iteration. Cutting that short takes a folder that all machines share (checkpoints).
STACK: Final = "-Xss16m"

#: Of a local master's process. Programs of a minute would spend it compiling Java with the second compiler, on the
#: cores that the data needs; and Java's usual collector keeps some 300 MB of notes beside a heap of 1 GB, the serial
#: one hardly any.
LOCAL_JAVA: Final = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"

#: Lines of Spark's log that a failure shows.
_TAIL: Final = 30

#: What a program's lines begin with that are logged while it runs, and how they are.
_TOLD: Final = {"warning: ": logging.WARNING, "progress: ": logging.INFO, "application: ": logging.INFO}
#: Seconds after which they are looked for again.
_FOLLOWED: Final = 2.0


def submit(settings: Settings, program: str, arguments: Sequence[str], warehouse_url: str) -> dict[str, Any]:
    """Run ``spark_jobs/<program>.py`` to its end and return the JSON object that it prints last.

    The warehouse's URL goes through the environment, since other users can read command lines. Whatever ends this call,
    an interrupt, SIGTERM and on Linux SIGKILL included, ends Spark too: left alone, it would go on to write where the
    next try writes. ``settings.spark_master`` is any master that runs the driver here.

    While it runs, its warnings, where its page is and how far it has come go to the log.

    Raises:
        ProgramMissingError: there is no Java that Spark runs on.
        SourceError: the program met something that the user can mend; its words.
        RuntimeError: the program failed otherwise; holds the end of its log.
    """
    require_java()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        with _followed(output.fileno(), program, warehouse_url):
            environment = _environment(settings, warehouse_url)
            status = _run(_command(settings, program, arguments), environment, output.fileno())
        output.seek(0)
        logged = output.read()
    if status == 0:
        result: dict[str, Any] = json.loads([line for line in logged.splitlines() if line.startswith("{")][-1])
        return result
    lines = _without_secrets(logged, warehouse_url).splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if status == 2 and errors:
        raise SourceError(errors[-1])
    lines = [line for line in lines if not line.startswith("progress: ")]
    raise RuntimeError("\n".join([f"spark-submit {program}.py ended with status {status}:", *lines[-_TAIL:]]))


def _followed(output: int, program: str, warehouse_url: str) -> AbstractContextManager[None]:
    """Log what a program tells in the file that it writes to, until the block ends."""

    def follow(ended: threading.Event) -> None:
        read, rest, last = 0, b"", False
        while not last:
            last = ended.wait(_FOLLOWED)
            while more := os.pread(output, 1 << 16, read):  # the place that the program writes to stays
                read += len(more)
                *lines, rest = (rest + more).split(b"\n")
                for line in lines:
                    _tell(program, _without_secrets(line.decode("utf-8", "replace"), warehouse_url))

    return beside("spark's output", follow)


def _tell(program: str, line: str) -> None:
    for prefix, level in _TOLD.items():
        if line.startswith(prefix):
            log.log(level, "%s: %s", program, line if prefix == "application: " else line.removeprefix(prefix))


def _without_secrets(log: str, url: str) -> str:
    """A log without the warehouse's URL and its password, and without the storage's secrets, which a failing library
    may have put there."""
    parts = urlsplit(url)
    passwords = {parts.password or "", *parse_qs(parts.query).get("password", [])}
    for secret in (url, *passwords, *map(unquote, passwords), *credentials.secrets()):
        log = log.replace(secret, "***") if secret else log
    return log


def require_java() -> None:
    """Check the Java that Spark would start: that of ``JAVA_HOME`` when it is set, else the one on ``PATH``.

    Raises:
        ProgramMissingError: it is not there, does not run, is older than 17, or is a trimmed runtime.
    """
    home = os.environ.get("JAVA_HOME")
    java = shutil.which(Path(home) / "bin" / "java") if home else shutil.which("java")
    if java is None:
        raise _java_error(f"JAVA_HOME ({home}) holds no bin/java" if home else "there is no java on PATH")
    version = re.search(r'version "(?:1\.)?(\d+)', _java_answer(java, "-version").stderr)
    if version is None:
        raise _java_error(f"{java} does not run")
    if int(version[1]) < _OLDEST_JAVA:
        raise _java_error(f"{java} is Java {version[1]}")
    if _java_answer(java, "--add-modules", _JAVA_MODULE, "-version").returncode != 0:
        raise _java_error(f"{java} is a trimmed Java {version[1]} without the module {_JAVA_MODULE}")


def _java_answer(java: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([java, *arguments], capture_output=True, text=True, check=False)


def _java_error(found: str) -> ProgramMissingError:
    return ProgramMissingError(f"Spark needs Java 17 or 21, but {found}; {_java_remedy()}")


def _java_remedy() -> str:
    if platform.system() == "Darwin":
        return "install it: brew install openjdk@17"
    try:
        system = platform.freedesktop_os_release()
    except OSError:
        system = {}
    if "debian" in (system.get("ID"), *system.get("ID_LIKE", "").split()):
        newer = system.get("ID") == "debian" and system.get("VERSION_ID", "").startswith("13")
        return f"install it: sudo apt-get install openjdk-{21 if newer else 17}-jre-headless"
    return "install it with the system's package manager, or set JAVA_HOME to one"


def _is_local(settings: Settings) -> bool:
    return settings.spark_master.startswith("local")


def _command(settings: Settings, program: str, arguments: Sequence[str]) -> list[str]:
    """What is run; whatever ``spark-defaults.conf`` sets and is not named here stays as it is set there."""
    spark_submit = str(Path(sysconfig.get_path("scripts")) / "spark-submit")
    return [spark_submit, *_options(settings), str(PROJECT_DIR / "spark_jobs" / f"{program}.py"), *arguments]


def _options(settings: Settings) -> list[str]:
    # The driver is a process of the task on every cluster: its result is what it prints.
    options = ["--master", settings.spark_master, "--deploy-mode", "client"]
    options += ["--conf", "spark.ui.showConsoleProgress=false"]
    options += [part for name, value in _LOCALE.items() for part in ("--conf", f"spark.executorEnv.{name}={value}")]
    options += [
        part for who in ("driver", "executor") for part in ("--conf", f"spark.{who}.defaultJavaOptions={STACK}")
    ]
    if _is_local(settings):
        options += ["--conf", "spark.ui.enabled=false", "--driver-java-options", LOCAL_JAVA]
    if settings.jdbc_driver_jar:
        jar = str(settings.jdbc_driver_jar)
        options += ["--jars", jar, "--driver-class-path", jar]
    return options


def _environment(settings: Settings, warehouse_url: str) -> dict[str, str]:
    # Another installation's SPARK_HOME would run its version of Spark with this environment's pyspark.
    environment = {name: value for name, value in os.environ.items() if name != "SPARK_HOME"}
    environment.setdefault("MALLOC_ARENA_MAX", "2")  # each of Java's threads would keep memory of its own
    environment |= {
        **_LOCALE,
        "DARE_WAREHOUSE_URL": warehouse_url,
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
    }
    return environment | ({"SPARK_LOCAL_IP": "127.0.0.1"} if _is_local(settings) else {})


def _run(command: Sequence[str], environment: Mapping[str, str], log: int) -> int:
    """The exit status. All output goes to the open file ``log``: Spark merges what the program prints into stdout."""
    with (
        _sigterm_raises(),
        subprocess.Popen(
            [*_bound_to_this_process(), *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            return process.wait()
        except BaseException:
            _end_group(process)
            raise


def _bound_to_this_process() -> list[str]:
    if sys.platform != "linux":
        return []
    return [sys.executable, "-I", "-S", "-c", _BOUND, str(os.getpid())]


def _end_group(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_GRACE)
    finally:  # whatever ignored the signal, and a second interrupt while waiting
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise ``SystemExit`` where it would end the process on the spot and leave Spark running."""
    in_charge = threading.current_thread() is threading.main_thread()
    if not in_charge or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)
