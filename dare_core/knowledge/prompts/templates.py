"""Templates of prompts: Jinja over named fields, of which only what a prompt needs is allowed.

A template is checked before it is used. It may name the fields of :mod:`dare_core.knowledge.prompts.fields`, decide
with ``if``, loop over lists of fields and change a value by a few filters. Everything else is refused with the line it
stands in, so that no template can run long, reach into Python or fail at its millionth entity.
"""

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext
from jinja2.sandbox import SandboxedEnvironment

from dare_core.config.descriptions import Attributes
from dare_core.config.domains import Domain
from dare_core.errors import SettingError
from dare_core.knowledge.prompts.fields import (
    SENTINEL,
    TEXT,
    Entity,
    Rendering,
    Row,
    Value,
    Wording,
    field_values,
    fields,
)
from dare_core.schemas import Kind

_SHIPPED: Final = Path(__file__).parent / "shipped"
_BLOCKS: Final = ("system", "user")
#: Of a template: nodes of its syntax tree, how deep they nest, and loops within one another.
_MOST_NODES: Final = 2_000
_MOST_DEPTH: Final = 40
_MOST_LOOPS: Final = 2
_LOOP: Final = ("first", "index", "last", "length")
#: What is refused by name, and what to do instead.
_INSTEAD: Final[Mapping[type[nodes.Node], str]] = {
    nodes.Call: "calls are not allowed; loop over a list of fields, or use a filter",
    nodes.Macro: "macros are not allowed; write the text out",
    nodes.CallBlock: "calls are not allowed; write the text out",
    nodes.Include: "a template is one file; write the text out",
    nodes.Import: "a template is one file; write the text out",
    nodes.FromImport: "a template is one file; write the text out",
    nodes.Extends: "a template is one file; write the text out",
    nodes.Assign: "set is not allowed; name the field where it is shown",
    nodes.AssignBlock: "set is not allowed; name the field where it is shown",
    nodes.Getitem: "square brackets are not allowed; name a field with a dot",
    nodes.BinExpr: "arithmetic is not allowed; join texts with ~",
    nodes.UnaryExpr: "arithmetic is not allowed; join texts with ~",
    nodes.Test: "tests are not allowed; `if` of a field asks whether it has a value",
}


@dataclass(frozen=True)
class Template:
    """A template that was checked.

    Attributes:
        version: its name, such as ``kar@2``; of a domain's own, its hash stands for a number.
        hash: of what it says, comments left out; 12 hex digits.
        origin: the file.
        own: whether it is the domain's.
        names: the fields that it names.
    """

    version: str
    hash: str
    origin: str
    own: bool
    names: tuple[str, ...]
    _source: str
    _compiled: jinja2.Template

    @property
    def is_first(self) -> bool:
        """Whether it is the wording that a framework had before there were versions."""
        return not self.own and self.version.endswith("@1")

    def line_of(self, text: str) -> int | None:
        """The first line that holds a text; None: it comes together from several pieces."""
        at = self._source.find(text)
        return None if at < 0 else self._source.count("\n", 0, at) + 1

    def render(
        self, domain: Domain, kind: Kind, attributes: Attributes, history: list[Attributes]
    ) -> dict[str, Wording]:
        """The text of each part, ``system`` and ``user``.

        Raises:
            InputError: it grows beyond all measure.
        """
        rendering = Rendering()
        value = field_values(rendering, domain, kind, attributes, history)
        context = self._compiled.new_context({name: value(name) for name in self.names})
        return {
            name: rendering.text(self._compiled.blocks[name](context)) if name in self._compiled.blocks else Wording()
            for name in _BLOCKS
        }


def template_of(domain: Domain, kind: Kind) -> Template:
    """What a domain asks of a kind: its own template where it has one, else the one that ``framework`` names.

    Raises:
        SettingError: there is no such version, or the template is not as it must be; names the line.
    """
    own = domain.own_prompts.get(kind)
    items, users = domain.source.items.attributes, domain.source.users.attributes
    if own is not None:
        return _checked(own.source, own.path, f"{domain.name}/{kind}", kind, items, users)
    name = domain.knowledge.prompt
    source = _shipped(name, kind)
    if source is None:
        there = ", ".join(sorted(folder.name for folder in _SHIPPED.iterdir()))
        raise SettingError(f"domain {domain.name}: knowledge.framework: there is no {name!r}; there are: {there}")
    return _checked(source, f"{name}/{kind}.md.j2", name, kind, items, users, own=False)


@lru_cache(maxsize=64)
def _shipped(name: str, kind: Kind) -> str | None:
    path = _SHIPPED / name / f"{kind}.md.j2"
    return path.read_text("utf-8") if path.is_file() else None


@lru_cache(maxsize=64)
def _checked(
    source: str, origin: str, version: str, kind: Kind, items: tuple[str, ...], users: tuple[str, ...], own: bool = True
) -> Template:
    tree = _parsed(source, origin)
    blocks = _blocks(tree, origin)
    check = _Check(origin, fields(kind, items, users))
    for block in blocks:
        check.statements(block.body, {}, 0)
    written = hashlib.sha256(repr([(block.name, _shape(block)) for block in blocks]).encode()).hexdigest()[:12]
    try:
        compiled = _ENVIRONMENT.from_string(tree)
    except (SyntaxError, RecursionError, MemoryError, jinja2.TemplateError) as error:
        raise SettingError(f"{origin}: cannot be compiled: {_first_line(error)}; write it simpler") from None
    return Template(
        f"{version}@{written}" if own else version, written, origin, own, tuple(sorted(check.named)), source, compiled
    )


def _parsed(source: str, origin: str) -> nodes.Template:
    """The syntax tree, of a size that everything after can walk through."""
    if SENTINEL in source:
        line = source[: source.index(SENTINEL)].count("\n") + 1
        _refuse(origin, line, "a NUL character is not allowed; remove it")
    try:
        tree = _ENVIRONMENT.parse(source)
    except jinja2.TemplateSyntaxError as error:
        _refuse(origin, error.lineno, f"{(error.message or 'not a template').rstrip('.')}; mend the template")
    except (RecursionError, MemoryError):
        raise SettingError(f"{origin}: nested too deeply; write it simpler") from None
    except ValueError as error:  # a number of thousands of digits
        raise SettingError(f"{origin}: cannot be read: {_first_line(error)}; write it simpler") from None
    count = 0
    waiting: list[tuple[nodes.Node, int]] = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if depth > _MOST_DEPTH:
            _refuse(origin, node.lineno, f"nested more than {_MOST_DEPTH} deep; write it simpler")
        if count > _MOST_NODES:
            raise SettingError(f"{origin}: more than {_MOST_NODES} pieces; write it shorter")
        waiting += [(child, depth + 1) for child in node.iter_child_nodes()]
    return tree


def _blocks(tree: nodes.Template, origin: str) -> list[nodes.Block]:
    """The parts, with nothing but space around them."""
    blocks: list[nodes.Block] = []
    for node in tree.body:
        if isinstance(node, nodes.Block):
            if node.name not in _BLOCKS:
                _refuse(origin, node.lineno, f"there is no part {node.name!r}; the parts are: {', '.join(_BLOCKS)}")
            if node.required:
                _refuse(origin, node.lineno, "a part cannot be required; remove the word")
            blocks.append(node)
        elif not isinstance(node, nodes.Output) or any(
            not isinstance(part, nodes.TemplateData) or part.data.strip() for part in node.nodes
        ):
            _refuse(
                origin, node.lineno, "this is part of no prompt; move it into {% block system %} or {% block user %}"
            )
    if "user" not in [block.name for block in blocks]:
        raise SettingError(f"{origin}: there is no {{% block user %}}; put what is asked into one")
    return blocks


class _Check:
    """Walks through a template and knows what each expression in it is."""

    def __init__(self, origin: str, known: Row) -> None:
        self._origin, self._known = origin, known
        self.named: set[str] = set()

    def statements(self, body: list[nodes.Node], scope: Row, loops: int) -> None:
        """Check statements; ``scope`` has what loops around them name, ``loops`` how many there are."""
        for node in body:
            match node:
                case nodes.Output():
                    for part in node.nodes:
                        if not isinstance(part, nodes.TemplateData):
                            self._text(part, scope)
                case nodes.If():
                    self._expression(node.test, scope)
                    others: list[nodes.Node] = list(node.elif_)
                    for branch in (node.body, others, node.else_):
                        self.statements(branch, scope, loops)
                case nodes.For():
                    self._loop(node, scope, loops)
                case _:
                    self._not_allowed(node)

    def _loop(self, node: nodes.For, scope: Row, loops: int) -> None:
        if node.recursive:
            self._refuse(node, "recursion is not allowed; write the inner loop out")
        if loops == _MOST_LOOPS:
            self._refuse(node, f"loops are nested more than {_MOST_LOOPS} deep; write it simpler")
        over = self._expression(node.iter, scope)
        if not isinstance(over, list):
            self._refuse(node, f"this is no list; lists are: {self._lists()}")
        if not isinstance(node.target, nodes.Name):
            self._refuse(node, "a loop gives one name; name its fields with a dot")
        inner = {**scope, node.target.name: over[0], "loop": dict.fromkeys(_LOOP, TEXT)}
        if node.test is not None:
            self._expression(node.test, inner)
        self.statements(node.body, inner, loops + 1)
        self.statements(node.else_, scope, loops)

    def _text(self, node: nodes.Expr, scope: Row) -> None:
        """An expression that is shown."""
        kind = self._expression(node, scope)
        if isinstance(kind, list):
            self._refuse(node, 'this is a list; loop over it, or join texts by |join(", ")')
        if kind != TEXT:
            self._refuse(node, f"this has several fields; name one with a dot: {', '.join(sorted(kind))}")

    def _expression(self, node: nodes.Node, scope: Row) -> Any:
        match node:
            case nodes.Const():
                if isinstance(node.value, str) and SENTINEL in node.value:
                    self._refuse(node, "a NUL character is not allowed; remove it")
                return TEXT
            case nodes.Name():
                return self._field(node, node.name, {**self._known, **scope}, scope)
            case nodes.Getattr():
                row = self._expression(node.node, scope)
                if not isinstance(row, Mapping):
                    self._refuse(node, f"there is no {node.attr!r} here: only rows of a list have fields")
                return self._field(node, node.attr, row, row)
            case nodes.Filter():
                return self._filter(node, scope)
            case nodes.CondExpr():
                self._expression(node.test, scope)
                self._text(node.expr1, scope)
                if node.expr2 is not None:
                    self._text(node.expr2, scope)
                return TEXT
            case nodes.Compare():
                for operand in (node.expr, *(each.expr for each in node.ops)):
                    self._text(operand, scope)
                return TEXT
            case nodes.And() | nodes.Or():
                left, right = self._expression(node.left, scope), self._expression(node.right, scope)
                return left if left == right else self._refuse(node, "both sides must be texts, or both lists")
            case nodes.Not():
                self._expression(node.node, scope)
                return TEXT
            case nodes.Concat():
                for part in node.nodes:
                    self._text(part, scope)
                return TEXT
            case _:
                return self._not_allowed(node)

    def _field(self, node: nodes.Node, name: str, there: Row, inner: Row) -> Any:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            self._refuse(node, f"there is no field {name!r}; {hint}there are: {', '.join(sorted(there))}")
        if name not in inner:
            self.named.add(name)
        return there[name]

    def _filter(self, node: nodes.Filter, scope: Row) -> Any:
        if node.node is None or node.name not in _FILTERS:
            self._refuse(node, f"there is no filter {node.name!r}; there are: {', '.join(sorted(_FILTERS))}")
        if node.kwargs or node.dyn_args or node.dyn_kwargs or len(node.args) > (node.name == "join"):
            self._refuse(node, f"filter {node.name!r} takes no such argument; remove it")
        for argument in node.args:
            if not isinstance(argument, nodes.Const) or not isinstance(argument.value, str):
                self._refuse(node, f'filter {node.name!r} takes a text in quotes, such as ", "')
            self._expression(argument, scope)
        kind = self._expression(node.node, scope)
        wanted = {"join": [TEXT], "length": None}.get(node.name, TEXT)
        if wanted is None and not isinstance(kind, list):
            self._refuse(node, f"filter {node.name!r} is of lists; lists are: {self._lists()}")
        if wanted is not None and kind != wanted:
            self._refuse(node, f"filter {node.name!r} is of {'lists of texts' if node.name == 'join' else 'texts'}")
        return TEXT

    def _lists(self) -> str:
        return ", ".join(sorted(name for name, kind in self._known.items() if isinstance(kind, list)))

    def _not_allowed(self, node: nodes.Node) -> NoReturn:
        instead = next((words for kind, words in _INSTEAD.items() if isinstance(node, kind)), None)
        plain = f"{type(node).__name__.lower()} is not allowed; a prompt has texts, fields, filters, if and for"
        self._refuse(node, instead or plain)

    def _refuse(self, node: nodes.Node, problem: str) -> NoReturn:
        _refuse(self._origin, node.lineno, problem)


def _shape(node: object) -> object:
    """What a piece of a template says, whatever comments stand in it."""
    if isinstance(node, nodes.Output):
        parts: list[Any] = []
        for part in node.nodes:
            if isinstance(part, nodes.TemplateData) and parts and isinstance(parts[-1], str):
                parts[-1] += part.data
            else:
                parts.append(part.data if isinstance(part, nodes.TemplateData) else _shape(part))
        return parts
    if isinstance(node, nodes.Node):
        return (type(node).__name__, *(_shape(value) for _, value in node.iter_fields(exclude=("ctx",))))
    return [_shape(each) for each in node] if isinstance(node, list) else node


class _Sandbox(SandboxedEnvironment):
    """What templates run in. They were checked before; whatever slipped through is refused here."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """A field of a row, or what a loop knows of its round."""
        if isinstance(obj, Entity | dict):
            return obj[attribute]
        if isinstance(obj, LoopContext) and attribute in _LOOP:
            return getattr(obj, attribute)
        raise SecurityError(f"{attribute!r} is out of reach")

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Nothing."""
        raise SecurityError(f"{argument!r} is out of reach")

    def call(self, *_: Any, **__: Any) -> Any:
        """Nothing."""
        raise SecurityError("calls are out of reach")


def _changed(value: object, change: Any) -> object:
    return value.changed(change) if isinstance(value, Value) else change(str(value))


#: Filters: on texts, and on lists.
_FILTERS: Final[Mapping[str, Any]] = {
    "capitalize": lambda value: _changed(value, str.capitalize),
    "join": lambda values, separator="": separator.join(str(value) for value in values),
    "length": len,
    "lower": lambda value: _changed(value, str.lower),
    "upper": lambda value: _changed(value, str.upper),
}


def _environment() -> _Sandbox:
    made = _Sandbox(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    made.globals, made.tests, made.filters = {}, {}, dict(_FILTERS)
    return made


_ENVIRONMENT: Final = _environment()


def _refuse(origin: str, line: int, problem: str) -> NoReturn:
    raise SettingError(f"{origin}:{line}: {' '.join(problem.split())}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
