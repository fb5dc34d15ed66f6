"""Domains: which source tables hold users, items and interactions, and how knowledge of them is asked for.

A domain is one file, ``config/<name>.toml``. Column names in it are the source's own, so that a team points the
platform at its tables by writing this file and nothing else.
"""

import codecs
import re
import tomllib
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dare_core.config.kinds import KINDS, Kind
from dare_core.config.settings import Settings
from dare_core.config.wording import REFUSALS, Language
from dare_core.errors import SettingError

#: How knowledge is asked for; see :mod:`dare_core.knowledge.prompts`.
Framework = Literal["kar", "trawl", "rlmrec", "once"]

#: What a vector is made of; see :mod:`dare_core.embedding.forms`.
Form = Literal["answer", "attributes+answer", "history+answer"]

#: What a column of numbers counts from 1970 on, to be read as times; how many of it make a second.
TIME_UNITS: Final = {"seconds": 1, "milliseconds": 1_000, "microseconds": 1_000_000, "nanoseconds": 1_000_000_000}
TimeUnit = Literal["seconds", "milliseconds", "microseconds", "nanoseconds"]

#: By column: values that stand for none.
NoneValues = dict[str, tuple[str | int | float, ...]]

_PROMPT_NAME: Final = re.compile(rf"({'|'.join(get_args(Framework))})(@[1-9][0-9]{{0,5}})?")
#: Bytes of a prompt's template.
_MOST_BYTES: Final = 32_768

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_RULE = "a domain's file is called <name>.toml, its name of a-z, 0-9 and _, a letter first, 63 characters at most"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _without_nul(cls, value: object) -> object:
        if any(isinstance(text, str) and "\0" in text for text in (value if isinstance(value, list) else [value])):
            raise ValueError("a NUL character is not allowed")  # no table, column, path or URL can have one
        return value


class _SourceTable(_Section):
    table: str

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """The columns that are read, by the key that names them."""
        named = ((key, value) for key, value in self if key not in ("table", "group", "time_unit", "none_values"))
        return {key: value if isinstance(value, tuple) else (value,) for key, value in named if value is not None}


class EntityTable(_SourceTable):
    """The table of one kind of entity."""

    id: str
    updated_at: str = Field(description="column with the time of a row's last change, UTC")
    title: str | None = Field(None, description="column with the name that prompts use; required for items")
    attributes: tuple[str, ...] = Field(description="columns that describe the entity, in the order prompts list them")
    group: str = Field(description="attribute that names the retrieval-pool group; see [grouping]")
    time_unit: TimeUnit | None = Field(None, description="of updated_at, where it counts from 1970 on")
    none_values: NoneValues = Field({}, description='by column: values that mean none, as "N/A"')

    @model_validator(mode="after")
    def _none_values_are_of_columns(self) -> "EntityTable":
        _check_none_values(self.none_values, (self.title, *self.attributes))
        return self


class InteractionTable(_SourceTable):
    """The table of what users did with items."""

    user: str
    item: str
    value: str = Field(description="column with a rating or another measure of liking")
    time: str
    time_unit: TimeUnit | None = Field(None, description="of the column time, where it counts from 1970 on")
    none_values: NoneValues = Field({}, description="by column: values that mean none, as -1 of a rating")

    @model_validator(mode="after")
    def _none_values_are_of_columns(self) -> "InteractionTable":
        _check_none_values(self.none_values, (self.value,))
        return self


def _check_none_values(given: NoneValues, columns: tuple[str | None, ...]) -> None:
    if unknown := [name for name in given if name not in columns]:
        there = ", ".join(filter(None, columns))
        raise ValueError(f"none_values: {unknown[0]!r} is no column that may be none; there are: {there}")


class CsvFormat(_Section):
    """How the CSV files are written; by default as RFC 4180 says."""

    encoding: str = "utf-8"
    separator: str = Field(",", min_length=1, max_length=1, description="between fields")
    quote: str = Field('"', min_length=1, max_length=1, description="around a field that holds a separator")
    escape: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="before a quote in a field; a backslash as Spark writes; unset: the quote",
    )

    @field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str) -> str:
        try:
            return codecs.lookup(encoding).name.removesuffix("-sig")
        except LookupError:
            raise ValueError(f"there is no encoding {encoding!r}") from None


class Source(_Section):
    """Where the tables are."""

    format: Literal["postgres", "jdbc", "parquet", "csv"] = "postgres"
    location: str | None = Field(
        None, description="postgres, jdbc: URL (default: the warehouse); parquet, csv: folder with one entry per table"
    )
    db_schema: str = Field("source", alias="schema", description="postgres, jdbc: the tables' schema")
    list_separator: str = Field("|", description="csv: what separates the values of a multi-valued column")
    csv: CsvFormat = CsvFormat()
    overlap_minutes: int = Field(
        60,
        ge=0,
        le=5_256_000,
        description="a pull reads so much again of what the one before saw: rows may be late by that much",
    )
    max_deleted_share: float = Field(
        0.02,
        ge=0,
        le=1,
        description="a pull fails when more of a kind's entities are gone: the table may be half loaded",
    )
    items: EntityTable
    users: EntityTable
    interactions: InteractionTable

    @property
    def in_warehouse(self) -> bool:
        """Whether the tables are in the warehouse's own database, so that its SQL can read them."""
        return self.format == "postgres" and self.location is None

    def may_lose(self, gone: int, there: int) -> bool:
        """Whether ``gone`` of ``there`` entities may be gone at once.

        Of a small table a share says little: five may go where they are a fifth of it at most, and one unless it is the
        last. With a ``max_deleted_share`` of 0 none may.
        """
        few = max(min(5, there // 5), 1 if there > 1 else 0) if self.max_deleted_share else 0
        return gone <= max(self.max_deleted_share * there, few)

    @model_validator(mode="after")
    def _tables_are_in_the_folder(self) -> "Source":
        for table in (self.items.table, self.users.table, self.interactions.table):
            if self.format in ("parquet", "csv") and (table in ("", ".", "..") or "/" in table):
                raise ValueError(f"table {table!r} cannot name a file of source.location; it may hold no '/'")
        return self


class AttributeGrouping(_Section):
    """How the attribute that ``group`` names makes retrieval-pool groups."""

    several: Literal["first", "all"] = Field(
        "first", description="of a list, the first value names the group, or all of them together"
    )
    min_count: int = Field(1, ge=1, description="values of fewer entities share the group that `rest` names")
    rest: str = Field("rest", pattern=r"^[^*\s]\S*( \S+)*$", max_length=64)


class ClusterGrouping(_Section):
    """Collaborative clusters: implicit-feedback factors of what users met, then k-means by direction."""

    min_interactions: int = Field(5, ge=1, description="users with fewer are at their cold start")
    users_per_cluster: int = Field(20, ge=1, description="on average at least; with too few users there are none")
    min_clusters: int = Field(4, ge=2)
    max_clusters: int = Field(12, ge=2, description="the number between the bounds with the best silhouette is taken")
    rank: int = Field(16, ge=1, le=256, description="width of the factors")
    regularization: float = Field(0.01, gt=0)
    alpha: float = Field(1.0, gt=0, description="confidence in an interaction of value r is 1 + alpha * r")
    iterations: int = Field(10, ge=1, description="of alternating least squares")
    seed: int = Field(0, ge=0)
    refit_growth: float = Field(
        0.2, ge=0, description="fit anew once there are so many more interactions, as a share; until then fold users in"
    )
    move_margin: float = Field(
        0.1, ge=0, lt=1, description="a user moves when another cluster is nearer by more than this share"
    )
    silhouette_margin: float = Field(
        0.02, ge=0, description="the number of clusters changes for a silhouette better by more than this"
    )

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "ClusterGrouping":
        if self.max_clusters < self.min_clusters:
            raise ValueError(f"max_clusters {self.max_clusters} is below min_clusters {self.min_clusters}")
        return self


class UserGrouping(AttributeGrouping):
    """Users by cluster where configured; by attribute at their cold start."""

    clusters: ClusterGrouping | None = None


class Grouping(_Section):
    """How entities are split into retrieval-pool groups (paper section 4.1)."""

    items: AttributeGrouping = AttributeGrouping()
    users: UserGrouping = UserGrouping()


class Knowledge(_Section):
    """How the knowledge is asked for."""

    framework: str = Field(
        "kar@1", description="what is asked, and how answers are read, with the version of its prompts; none: @1"
    )
    noun: str = Field(description="what an item is: movie, product")
    plural: str
    history: str = Field(description="what a user's history is of: viewing, purchase")
    value_unit: str = Field(description="what follows an interaction's value: stars")
    factors: tuple[str, ...] = Field(min_length=1, description="scenario-specific factors of preference")
    max_history: int = Field(30, ge=1, description="interactions that a user's prompt shows at most, newest kept")
    min_new_events: int = Field(
        1,
        ge=1,
        description="a user with a text gets another after so many interactions, or when the user's row changed",
    )
    expires_after_days: float | None = Field(
        None, gt=0, le=36_500, description="texts are written anew after so long; unset: never"
    )
    embedded: Form = Field(
        "answer",
        description="what vectors are made of: the text alone, or also the attributes, or of users also the history",
    )

    @field_validator("framework")
    @classmethod
    def _known(cls, framework: str) -> str:
        if not _PROMPT_NAME.fullmatch(framework):
            names = ", ".join(get_args(Framework))
            raise ValueError(f"{framework!r} is no framework; there are {names}, each with a version, as kar@2")
        return framework

    @property
    def framework_name(self) -> Framework:
        """The framework without the version."""
        name: Framework = self.framework.partition("@")[0]  # type: ignore[assignment]  # as validated
        return name

    @property
    def prompt(self) -> str:
        """The framework and the version of its prompts: files that name none were written when there was one."""
        return self.framework if "@" in self.framework else f"{self.framework}@1"


#: Click models that evaluate.
ClickModelName = Literal["din", "dcnv2"]


class ClickTraining(_Section):
    """How click models are trained, the same for every arm; `dare evaluate --search` finds what validates best."""

    learning_rate: float = Field(3e-3, gt=0, le=1)
    weight_decay: float = Field(1e-4, ge=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    epochs: int = Field(8, ge=1, description="at most; the epoch with the best AUC on the validation's part is kept")
    patience: int = Field(1, ge=1, description="epochs without a better one, after which training stops")


class Evaluation(_Section):
    """How interactions become examples of a click model; a domain without is not evaluated."""

    positive_from: float = Field(description="an interaction with this value or a larger one is a like")
    first_events: int | None = Field(
        None, ge=1, description="interactions at which a user gets the first text; default: knowledge.max_history"
    )
    min_new_events: int | None = Field(
        None, ge=1, description="a user gets another after so many; default: knowledge.min_new_events"
    )
    max_interactions: int = Field(
        2_000_000,
        ge=1_000,
        description="an evaluation reads no more: of a larger table, what some users did, the same ones each time",
    )
    click_model: ClickModelName = "din"
    training: ClickTraining = ClickTraining()


class Schedule(_Section):
    """When the domain's DAGs run by themselves."""

    refresh: str | None = Field(None, description="cron or preset; default: the setting refresh_schedule")


class Bound(_Section):
    """Where a measure of many rows is worth a warning, and where it ends the run; None: nowhere."""

    warn: float | None = Field(None, ge=0)
    fail: float | None = Field(None, ge=0)


class SourceQuality(_Section):
    """What is expected of the entities that a run pulled. Defaults and what they rest on: docs/quality.md."""

    attribute_coverage: Bound = Field(
        Bound(warn=0.5), description="share of entities that have a value, at least; of the title and each attribute"
    )
    coverage_min_rows: int = Field(50, ge=1, description="with fewer entities pulled, coverage is not looked at")
    suspicious_titles: Bound = Field(
        Bound(warn=0), description="share of items whose title holds a prompt-injection marker, at most"
    )
    dropped_interactions: Bound = Field(
        Bound(warn=0.1, fail=1),
        description="share of new interactions whose user or item is in no table, from which on; fail: of ten at least",
    )


class TextQuality(_Section):
    """What a text must keep to, or it goes to quarantine."""

    min_characters: int = Field(40, ge=0)
    max_characters: int = Field(20_000, ge=1)
    max_repetition: float = Field(0.4, ge=0, le=1, description="share of the opening that was said before")
    min_printable: float = Field(0.99, gt=0, le=1, description="leaves room for a character that a token limit cut")
    language: Language = Field("en", description="any: texts may be in any language")
    min_language: float = Field(0.05, ge=0, le=1, description="share of words that are the language's most frequent")
    max_echo: float = Field(0.3, ge=0, le=1, description="share of the opening that repeats the prompt")
    refusals: tuple[str, ...] = Field(REFUSALS, description="phrases that a text may not begin with")
    min_own_words: int = Field(1, ge=0, description="different words of its entity's attributes that the text says")
    max_relaxed: float = Field(0.5, ge=0, le=1, description="share of tokens that passed by relaxation alone")

    @model_validator(mode="after")
    def _lengths_in_order(self) -> "TextQuality":
        if self.max_characters < self.min_characters:
            raise ValueError(f"max_characters {self.max_characters} is below min_characters {self.min_characters}")
        return self


class FeatureQuality(_Section):
    """What is expected of texts and vectors as features, by kind."""

    coverage: Bound = Field(Bound(), description="share of entities with valid knowledge and a vector, at least")
    length_drift: Bound = Field(
        Bound(warn=0.25), description="relative change of the mean length against the last runs, at most"
    )
    norm_drift: Bound = Field(Bound(warn=0.01), description="likewise, of the vectors' mean norm")
    likeness_drift: Bound = Field(
        Bound(warn=0.15), description="likewise, of the length of the mean vector: 1 where all texts say the same"
    )
    drift_runs: int = Field(5, ge=1, description="runs that are compared with")
    drift_min_texts: int = Field(50, ge=2, description="with fewer texts, before or now, drift is not looked at")


class Quality(_Section):
    """What is checked, and what follows; see docs/quality.md."""

    source: SourceQuality = SourceQuality()
    texts: TextQuality = TextQuality()
    features: FeatureQuality = FeatureQuality()


class OwnPrompt(NamedTuple):
    """A domain's own template of a kind's prompts: its file, and what is in it."""

    path: str
    source: str


class Domain(_Section):
    """One ``config/<name>.toml``, and the templates in ``config/<name>/prompts``."""

    name: str
    own_prompts: dict[Kind, OwnPrompt] = {}
    schedule: Schedule = Schedule()
    source: Source
    grouping: Grouping = Grouping()
    knowledge: Knowledge
    quality: Quality = Quality()
    evaluation: Evaluation | None = None


def domain_names(settings: Settings) -> list[str]:
    """The configured domains: the files of ``settings.config_dir``."""
    return sorted(path.stem for path in settings.config_dir.glob("*.toml") if _NAME.fullmatch(path.stem))


def misnamed_files(settings: Settings) -> list[SettingError]:
    """What is wrong with the names of files of ``settings.config_dir`` that look like domains and are left out."""
    folder = settings.config_dir
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [
        SettingError(f"{path} is not read: {_RULE}")
        for path in files
        if path.suffix.lower() == ".toml" and not path.name.startswith(".")
        if path.suffix != ".toml" or not _NAME.fullmatch(path.stem)
    ]


def load_domain(settings: Settings, name: str) -> Domain:
    """Read ``config/<name>.toml``.

    Raises:
        SettingError: no such domain, no valid TOML, or a key is missing, unknown or of the wrong type.
    """
    known = domain_names(settings)
    if name not in known:
        left_out = "".join(f"; {error}" for error in misnamed_files(settings))
        there_are = ", ".join(known) or "none"
        raise SettingError(
            f"domain {name!r} is not configured in {settings.config_dir}; there are: {there_are}{left_out}"
        )
    return read_domain(settings.config_dir / f"{name}.toml")


def read_domain(path: Path) -> Domain:
    """The domain of one file; see :func:`load_domain`."""
    try:
        content = tomllib.loads(path.read_text("utf-8-sig"))
        if "name" in content:  # it names folders, and what is stored
            raise SettingError(f"{path}: name: a domain is called what its file is; remove the line")
        if "own_prompts" in content:
            raise SettingError(f"{path}: own_prompts: put templates into {_prompt_folder(path)}; remove the line")
        return Domain.model_validate({"name": path.stem, "own_prompts": _own_prompts(path), **content})
    except OSError as error:
        raise SettingError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingError(f"{path}: not valid TOML: {error}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        raise SettingError(f"{path}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None


def _prompt_folder(path: Path) -> Path:
    return path.parent / path.stem / "prompts"


def _own_prompts(path: Path) -> dict[Kind, OwnPrompt]:
    """The templates beside a domain's file.

    Raises:
        SettingError: one has another name than a kind's, is too long, or cannot be read as text.
    """
    folder = _prompt_folder(path)
    if not folder.is_dir():
        return {}
    names: dict[str, Kind] = {f"{kind}.md.j2": kind for kind in KINDS}
    found: dict[Kind, OwnPrompt] = {}
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.suffix != ".j2":
            continue
        if file.name not in names:
            raise SettingError(f"{file} is no kind's prompt; call it {' or '.join(names)}")
        try:
            content = file.read_bytes()
            if len(content) > _MOST_BYTES:
                raise SettingError(f"{file}: {len(content)} bytes, of at most {_MOST_BYTES}; write it shorter")
            found[names[file.name]] = OwnPrompt(str(file), content.decode("utf-8-sig"))
        except OSError as error:
            raise SettingError(f"{file}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise SettingError(f"{file}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    return found
