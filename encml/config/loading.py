"""Reading a YAML file into a frozen pydantic model, with errors a person can act on.

Every error names the file, the line, the key, what was found and what is allowed. YAML is read as YAML 1.2 reads
it (``1e-5`` is a number, ``no`` and ``12:30`` are text, a repeated key is an error), because PyYAML's older rules
turn such values into something else without a word.
"""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from encml.errors import ConfigError

M = TypeVar("M", bound=BaseModel)

_FOUND_LENGTH = 80


class Config(BaseModel):
    """Base of every configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema, refusing repeated keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own protocol)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key.value, str):
                continue
            if key.value in seen:
                problem = f"the key {key.value!r} stands already on line {seen[key.value]}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("tag:yaml.org,2002:int", r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN))$",
        list("-+0123456789."),
    ),
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text wherever ``_Loader``, not PyYAML, would read something else."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def load_yaml(path: str | Path, model: type[M]) -> M:
    """Read ``path`` and check it against ``model``; types are strict (``"8"`` is no integer, 8 is a float).

    Raises ConfigError for a missing, unreadable or empty file, a YAML syntax error, an unknown or missing key, a
    value of the wrong type or out of range, naming file, line and key; all errors of the file are listed at once.
    """
    path = Path(path)
    tree, data = _parse(path, model)
    return check(data, model, str(path), _locator(path, tree))


def load_yaml_as(path: str | Path, key: str, models: Mapping[str, type[M]], default: str) -> M:
    """As ``load_yaml``, against the model that the file names under ``key``; ``default`` where it names none."""
    path = Path(path)
    tree, data = _parse(path, models[default])
    name = data.get(key, default)
    if not isinstance(name, str) or name not in models:
        close = difflib.get_close_matches(str(name), models, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ConfigError(
            f"{_locator(path, tree)([key])}: {key}: found {_short(name)}{hint}; allowed: {_names(models)}"
        )
    return check(data, models[name], str(path), _locator(path, tree))


def _parse(path: Path, model: type[BaseModel]) -> tuple[yaml.Node, dict[str, Any]]:
    """The file as YAML, and as the mapping that it is."""
    text = _read(path)
    try:
        loader = _Loader(text)
        try:
            tree = loader.get_single_node()
            data = None if tree is None else loader.construct_document(tree)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(_syntax_error(path, error)) from None
    if tree is None or data is None:
        raise ConfigError(f"{path}: the file is empty; expected the keys {_names(model.model_fields)}")
    if not isinstance(data, dict):
        found = type(data).__name__
        raise ConfigError(f"{path}: expected 'key: value' lines at the top, found a {found}")
    return tree, data


def _locator(path: Path, tree: yaml.Node) -> Callable[[Sequence[int | str]], str]:
    """Where in the file a key stands."""

    def locate(location: Sequence[int | str]) -> str:
        node = tree
        for step in location:
            node = _child(node, step) or node
        return f"{path}:{node.start_mark.line + 1}"

    return locate


def parse_value(text: str) -> Any:
    """One value by the same rules as a file's, for a command line; raises ConfigError where it is no valid YAML."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} is not valid YAML: {getattr(error, 'problem', None) or error}") from None
    finally:
        loader.dispose()


def dump_yaml(config: BaseModel) -> str:
    """``config`` with every key, as YAML that ``load_yaml`` reads back to an equal object."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def check(
    data: Mapping[str, Any],
    model: type[M],
    source: str,
    locate: Callable[[Sequence[int | str]], str] | None = None,
) -> M:
    """Check values as strictly as ``load_yaml`` does; errors start with what
    ``locate`` makes of their key, or with ``source``.

    Raises ConfigError, listing all errors at once.
    """
    try:
        document = json.dumps(data)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: only text, numbers, booleans, lists and mappings are allowed: {error}") from None
    try:
        return model.model_validate_json(document, strict=True)
    except ValidationError as error:
        lines = [
            _explain(locate or (lambda location: source), data, model, details)
            for details in error.errors(include_url=False)
        ]
        raise ConfigError("\n".join(lines)) from None


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong in JSON from outside, as "where: what"; never the value that was found."""
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(step) for step in first["loc"])
    return f"{where}: {first['msg']}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        found = path.parent.glob("[!.]*.y*ml") if path.parent.is_dir() else ()
        near = sorted(p.name for p in found)
        hint = f"; in {path.parent} there are: {', '.join(near)}" if near else ""
        raise ConfigError(f"{path}: no such file{hint}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _syntax_error(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
    return f"{where}: not valid YAML: {problem}"


def _explain(
    locate: Callable[[Sequence[int | str]], str], data: object, model: type[BaseModel], details: ErrorDetails
) -> str:
    location = _in_file(details["loc"], data)
    where = locate(location)
    key = _dotted(location)
    message, found = details["msg"].removeprefix("Value error, "), details["input"]
    if details["type"] == "extra_forbidden":
        allowed = _allowed(model, details["loc"][:-1])
        close = difflib.get_close_matches(str(location[-1]), allowed, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        return f"{where}: {key}: unknown key{hint}; allowed: {_names(allowed)}"
    if details["type"] == "missing":
        return f"{where}: {key}: this key is missing"
    if details["type"] == "value_error" and isinstance(found, (dict, list)):
        return f"{where}: {key}: {message}" if key else f"{where}: {message}"
    return f"{where}: {key}: found {_short(found)}; {message[:1].lower()}{message[1:]}"


def _in_file(location: Sequence[int | str], data: object) -> list[int | str]:
    """``location`` without the steps that only pydantic knows (the branch of a union)."""
    result: list[int | str] = []
    for place, step in enumerate(location):
        last = place == len(location) - 1
        if isinstance(data, Mapping) and (step in data or last):
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int):
            data = data[step] if step < len(data) else None
        else:
            continue
        result.append(step)
    return result


def _child(node: yaml.Node, step: int | str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == str(step)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        child: yaml.Node = node.value[step]
        return child
    return None


def _dotted(location: Iterable[int | str]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return text.removeprefix(".")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _FOUND_LENGTH else f"{text[:_FOUND_LENGTH]}..."


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)


def _allowed(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The keys allowed at ``location`` inside ``model``."""
    here: list[object] = [model]
    for step in location:
        here = [inner for kind in here for inner in _step_into(kind, step)]
    return sorted({name for kind in here if _is_model(kind) for name in kind.model_fields})


def _step_into(kind: object, step: int | str) -> list[object]:
    if _is_model(kind):
        fields = kind.model_fields
        if step in fields:
            return _flatten(fields[step].annotation)
        tags = [f.annotation for f in fields.values() if get_origin(f.annotation) is Literal]
        chosen = not tags or any(step in get_args(tag) for tag in tags)
        return [kind] if chosen else []
    arguments = [a for a in get_args(kind) if a is not Ellipsis]
    if isinstance(step, int) and get_origin(kind) is tuple and step < len(arguments):
        return _flatten(arguments[step])
    return _flatten(arguments[-1]) if arguments else []


def _flatten(kind: object) -> list[object]:
    if get_origin(kind) in (Union, types.UnionType):
        return [inner for argument in get_args(kind) for inner in _flatten(argument)]
    if get_origin(kind) is not None and hasattr(kind, "__metadata__"):
        return _flatten(get_args(kind)[0])
    return [kind]


def _is_model(kind: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
