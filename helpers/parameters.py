"""Strict parameters of a notebook: its own defaults, changed by a profile, changed by the command line."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from helpers import project
from helpers.wording import closest

TYPES = ("int", "float", "str", "bool", *(f"list[{kind}]" for kind in ("int", "float", "str", "bool")))


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: `name: kind = default  # comment`. Introduced in notebook 01."""

    name: str
    kind: str
    default: Any
    comment: str

    def __str__(self) -> str:
        return f"  {f'{self.name}: {self.kind} = {self.default!r}':<44} {self.comment}".rstrip()


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a notebook by name.

    Raises ValueError when the cell holds anything but typed literals (`n_latent: int = 16  # comment`). Introduced
    in notebook 01.
    """
    source = project.parameter_cell(notebook)
    lines = io.StringIO(source).readline
    comments = {t.start[0]: t.string for t in tokenize.generate_tokens(lines) if t.type == tokenize.COMMENT}
    found = [_parameter(line, comments, notebook) for line in ast.parse(source).body]
    return {parameter.name: parameter for parameter in found}


def _parameter(line: ast.stmt, comments: Mapping[int, str], notebook: Path) -> Parameter:
    try:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name) or line.value is None:
            raise TypeError("not of the form `name: type = literal  # comment`")
        kind = ast.unparse(line.annotation)
        default = convert(kind, ast.literal_eval(line.value))
    except (TypeError, ValueError) as error:
        where = f"{notebook.name}, parameters cell, line {line.lineno}"
        raise ValueError(f"{where}: `{ast.unparse(line)}`: {error}") from error
    return Parameter(line.target.id, kind, default, comments.get(line.end_lineno or 0, "").lstrip("# "))


def convert(kind: str, value: Any) -> Any:
    """A value as the declared type; TypeError when it is another. A whole number may stand for a float.

    Introduced in notebook 01.
    """
    if kind not in TYPES:
        raise TypeError(f"type {kind} is none of {', '.join(TYPES)}")
    if kind.startswith("list[") and isinstance(value, list):
        return [convert(kind[5:-1], element) for element in value]
    if kind == "float" and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-4 as text
        except ValueError:
            pass
    if type(value).__name__ != kind:
        raise TypeError(f"needs {kind}, got {value!r}")
    return value


def profile_parameters(profile: str, stem: str) -> dict[str, Any]:
    """What `params/<profile>/<stem>.yaml` changes; nothing when there is no such file.

    Introduced in notebook 01.
    """
    path = project.ROOT / "params" / profile / f"{stem}.yaml"
    if not path.exists():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `name: value` lines")
    return content


def resolve(notebook: Path, profile: str, given: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Final parameters of a notebook, and those of the profile alone.

    `given` holds the texts of `-p`. Raises ValueError that lists every fault and the valid names. Introduced in
    notebook 01.
    """
    known = read_parameters(notebook)
    standard = {name: parameter.default for name, parameter in known.items()}
    faults: list[str] = []
    _overlay(standard, known, profile_parameters(profile, notebook.stem), f"params/{profile}", faults)
    final = dict(standard)
    _overlay(final, known, {name: _from_text(known, name, text) for name, text in given.items()}, "-p", faults)
    if faults:
        valid = "\n".join(str(parameter) for parameter in known.values())
        raise ValueError("\n".join(faults) + f"\nvalid parameters of {notebook.stem}:\n{valid}")
    return final, standard


def _overlay(
    params: dict[str, Any],
    known: Mapping[str, Parameter],
    new: Mapping[str, Any],
    source: str,
    faults: list[str],
) -> None:
    for name, value in new.items():
        if name not in known:
            faults.append(f'unknown parameter "{name}" ({source}){closest(str(name), known)}')
            continue
        try:
            params[name] = convert(known[name].kind, value)
        except TypeError as error:
            faults.append(f'parameter "{name}" ({source}) {error}')


def _from_text(known: Mapping[str, Parameter], name: str, text: str) -> Any:
    kind = known[name].kind if name in known else ""
    if kind == "str":
        return _from_here(text)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if kind == "list[str]" and isinstance(value, list):
        return [_from_here(element) if isinstance(element, str) else element for element in value]
    return value


def _from_here(text: str) -> str:
    """A file named from the caller's folder as an absolute path, for the kernel starts in the project's root."""
    return str(Path(text).resolve()) if text and Path(text).is_file() else text
