"""Many small trainings, one per setting, that continue where they stopped: each result is a file of its own.

A result is named by all that decides it: the setting, the context, the source of this package and of the training
function. What changed is computed again, what did not is read. Files are safetensors, which execute nothing.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import CellType, CodeType
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from helpers import project
from helpers.wording import few

Scalar = bool | int | float | str | None
Result = dict[str, Scalar | np.ndarray]
PACKAGE = Path(__file__).parent
PLOTS = ("plots", "term_plots", "study_plots", "translation_plots", "code_plots", "track_plots", "tissue_plots")
SHOWING = (*PLOTS, "explore", "report", "kernels", "run")  # modules that change no result
MISTAKES = (NameError, TypeError, AttributeError, ImportError, LookupError)  # of the code, not of one setting


class SweepFailed(RuntimeError):
    """Some settings failed and all others are stored. `results` holds every one, `errors` setting number -> message.

    Introduced in notebook 02.
    """

    def __init__(self, message: str, results: list[Result], errors: dict[int, str]):
        super().__init__(message)
        self.results, self.errors = results, errors


def sweep(
    settings: Sequence[Mapping[str, Scalar]],
    train_one: Callable[[dict[str, Scalar]], Mapping[str, Any]],
    folder: str | Path | None,
    context: Mapping[str, Any] | None = None,
    progress: bool | None = None,
    label: str = "models",
    errors: str = "raise",
) -> list[Result]:
    """Call `train_one(setting)` for every setting without a stored result; results come in the order of `settings`.

    Parameters
    ----------
    settings : one dict of numbers, texts, True/False or None per training, no two alike.
    train_one : setting -> named arrays (numpy; bool, integer or float), numbers, texts or None. It must draw on
        nothing else than the setting, its seed included, or an interrupted sweep would end otherwise.
    folder : where results are kept, for example `run.kept`, which outlives a killed run; None keeps nothing.
    context : what else decides the results and is not seen here, the data above all, as JSON values:
        `{"data": mdata.uns["dataset"]["sha256"], "n_features": n_features}`.
    progress : one bar with an estimate of the time left; by default in interactive use only.
    label : what the bar counts.
    errors : a setting that fails stops no other. "raise": one `SweepFailed` at the end that names all that failed;
        "keep": the result is {**setting, "error": message}. Failures are not stored, so they are tried again.
        Only a mistake of the code (NameError, TypeError, KeyError ...) before anything succeeded ends at once.

    Returns {**setting, **result} per setting, exactly as it would be read from its file. The name of a file hashes
    setting, context, the helpers package (without its plots and the runner) and `train_one`: its byte code, the
    constants and the plain numbers and texts that it takes from around it, through functions of its own module too.
    It does not see arrays, objects, or other packages: name those in `context`. Whatever is interrupted or killed
    loses the setting at work and no other; a damaged file is computed again, with a warning.

    Raises ValueError for settings or results of another kind, duplicate settings, or a folder that the runner would
    clear; OSError where nothing can be written. Introduced in notebook 02.
    """
    chosen = _checked(settings)
    if errors not in ("raise", "keep"):
        raise ValueError(f'errors="{errors}": choose "raise" or "keep"')
    paths = _paths(chosen, train_one, _kept(folder), context or {})
    results = {i: found for i, path in enumerate(paths) if (found := _read(path)) is not None}
    failed: dict[int, Exception] = {}
    with _bar(len(chosen), len(results), progress, label) as bar:
        for i in (i for i in range(len(chosen)) if i not in results):
            try:
                made = train_one(dict(chosen[i]))
            except Exception as error:
                if isinstance(error, MISTAKES) and not results:
                    raise
                failed[i] = error
                bar.set_postfix(failed=len(failed), refresh=False)
            else:
                results[i] = _plain(made, chosen[i])
                _write(paths[i], results[i])
            bar.update()
    return _together(chosen, results, failed, errors)


def table(results: Sequence[Mapping[str, Any]], *columns: str) -> pd.DataFrame:
    """The scalars of a sweep's results, a row each, in the order of the settings; or the `columns` named.

    Settings come first, as in the results themselves; arrays are left out, and what a result lacks is NaN.
    Raises ValueError for a column that is no scalar anywhere. Introduced in notebook 02.
    """
    rows = [{name: v for name, v in result.items() if not isinstance(v, np.ndarray)} for result in results]
    known = list(dict.fromkeys(name for row in rows for name in row))
    if unknown := [name for name in columns if name not in known]:
        raise ValueError(f"the results hold no scalar {few(unknown)}; there are {few(known) or 'none'}")
    return pd.DataFrame(rows, columns=list(columns) or known)


# ---------------------------------------------------------------- what is given


def _checked(settings: Sequence[Mapping[str, Scalar]]) -> list[dict[str, Scalar]]:
    chosen = [{str(name): _scalar(v) for name, v in setting.items()} for setting in settings]
    for setting in chosen:
        if wrong := [name for name, v in setting.items() if not isinstance(v, Scalar)]:
            raise ValueError(f"setting {setting}: {few(wrong)} is no number, text, True/False or None")
    keys = [json.dumps(setting, sort_keys=True) for setting in chosen]
    if repeated := list(dict.fromkeys(key for key in keys if keys.count(key) > 1)):
        raise ValueError(f"settings given more than once: {'; '.join(repeated[:3])}; tell them apart by a seed")
    return chosen


def _kept(folder: str | Path | None) -> Path | None:
    """The folder, there and writable; ValueError where the runner would throw it away with the run."""
    if folder is None:
        return None
    folder, run = Path(folder).resolve(), os.environ.get("WORKBOOK_RUN_DIR")
    if run and folder.is_relative_to(Path(run).resolve()):
        raise ValueError(f"{folder} lies in the folder of this run, cleared before the next: give run.kept")
    project.check_writable(folder)
    return folder


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _plain(result: Any, setting: Mapping[str, Scalar]) -> Result:
    """{**setting, **result} with Python's numbers and contiguous arrays; ValueError for what cannot be stored."""
    if not isinstance(result, Mapping):
        raise ValueError(f"train_one must return a dict of arrays, numbers and texts, not {type(result).__name__}")
    values = {str(name): _scalar(v) for name, v in result.items()}
    for name, value in values.items():
        if name in setting:
            raise ValueError(f'the result "{name}" has the name of a setting: choose another')
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
            values[name] = np.asarray(value, dtype=value.dtype.newbyteorder("="), order="C")
        elif not isinstance(value, Scalar):
            kind = getattr(value, "dtype", type(value).__name__)
            raise ValueError(f'the result "{name}" is {kind}: give a numpy array of numbers, a number or a text')
    return dict(setting) | values


# ---------------------------------------------------------------- what decides a result


def _paths(settings: list[dict], train_one: Callable, folder: Path | None, context: Mapping) -> list[Path | None]:
    if folder is None:
        return [None] * len(settings)
    try:
        around = json.dumps([dict(context), AT_IMPORT, _package(), _source(train_one, set())], sort_keys=True)
    except TypeError as error:
        raise ValueError(f"context must hold JSON values (texts, numbers, lists): {error}") from None
    names = [hashlib.sha256((json.dumps(s, sort_keys=True) + around).encode()).hexdigest()[:32] for s in settings]
    return [folder / f"{name}.safetensors" for name in names]


def _package() -> str:
    """Digest of the package's source, without the modules that only show."""
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if path.stem not in SHOWING]
    parts = (str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes() for path in files)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


AT_IMPORT = _package()  # an edit may or may not have reached a kernel that was running: neither is a fresh kernel's


def _source(function: Any, seen: set[int]) -> list:
    """What a function does, as JSON: its byte code, its defaults, and what it takes from around it."""
    if isinstance(function, partial):
        given = [*function.args, *sorted(function.keywords.items())]
        return [_source(function.func, seen), [_token(v, None, seen) for v in given]]
    function = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(function, "__code__", None)
    if code is None or id(code) in seen:
        return [getattr(function, "__qualname__", type(function).__qualname__)]
    seen.add(id(code))
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    inside = {name: cell.cell_contents for name, cell in cells if cell != CellType()}  # unless not filled yet
    taken = {name: function.__globals__[name] for name in _names(code) if name in function.__globals__} | inside
    taken |= dict(enumerate(function.__defaults__ or ())) | (function.__kwdefaults__ or {})
    return [_code(code), {str(name): _token(v, function.__module__, seen) for name, v in taken.items()}]


def _token(value: Any, module: str | None, seen: set[int]) -> Any:
    """Plain values as they are, functions of the same module by their source; nothing for data and other objects."""
    if isinstance(value, tuple):
        return [_token(v, module, seen) for v in value]
    if isinstance(value, Scalar):
        return repr(value)
    return _source(value, seen) if inspect.isfunction(value) and value.__module__ == module else None


def _names(code: CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*(_names(c) for c in inner))


def _code(code: CodeType) -> list:
    """Byte code and constants: neither comments nor line numbers nor the file, which differs from kernel to kernel."""
    constants = [
        _code(c) if isinstance(c, CodeType) else repr(sorted(map(repr, c)) if isinstance(c, frozenset) else c)
        for c in code.co_consts
    ]
    return [code.co_code.hex(), list(code.co_names), list(code.co_varnames), constants]


# ---------------------------------------------------------------- files


def _write(path: Path | None, result: Result) -> None:
    """One safetensors file: arrays, and a JSON header with the scalars, the order and a checksum."""
    if path is None:
        return
    arrays = {name: v for name, v in result.items() if isinstance(v, np.ndarray)}
    scalars = {name: v for name, v in result.items() if name not in arrays}
    header = {"scalars": scalars, "order": list(result), "sha256": _checksum(arrays, scalars)}
    project.write_atomic(path, save(arrays, {"sweep": json.dumps(header)}))


def _read(path: Path | None) -> Result | None:
    """A stored result; None where there is none, and a warning where it is damaged."""
    if path is None or not path.is_file():
        return None
    try:
        with safe_open(path, "np") as file:
            header = json.loads(file.metadata()["sweep"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        if header["sha256"] != _checksum(arrays, header["scalars"]):
            raise ValueError("its checksum differs")
        return {name: arrays[name] if name in arrays else header["scalars"][name] for name in header["order"]}
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        warnings.warn(f"{path.name} is damaged ({error}); it is computed again", stacklevel=3)
        return None


def _checksum(arrays: Mapping[str, np.ndarray], scalars: Mapping[str, Scalar]) -> str:
    digest = hashlib.sha256(json.dumps(scalars, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode() + arrays[name].tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------- what is shown and returned


def _bar(total: int, stored: int, progress: bool | None, label: str) -> Any:
    from tqdm.auto import tqdm

    shown = "WORKBOOK_RUN_DIR" not in os.environ if progress is None else progress
    return tqdm(total=total, initial=stored, desc=label, unit="fit", disable=not shown, smoothing=0)


def _together(chosen: list[dict], results: dict[int, Result], failed: dict[int, Exception], errors: str) -> list:
    messages = {i: f"{type(error).__name__}: {error}" for i, error in failed.items()}
    every = [results.get(i, setting | {"error": messages.get(i)}) for i, setting in enumerate(chosen)]
    if failed and errors == "raise":
        lines = [f"  {chosen[i]}: {message}" for i, message in list(messages.items())[:5]]
        more = [f"  ... and {len(failed) - 5} more"] if len(failed) > 5 else []
        head = f'{len(failed)} of {len(chosen)} settings failed, the others are done (errors="keep" goes on without):'
        raise SweepFailed("\n".join([head, *lines, *more]), every, messages) from next(iter(failed.values()))
    return every
