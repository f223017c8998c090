"""Models in a file of their own: the recipe with its arguments, and the weights. Nothing in the file is executed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from helpers import decoders
from helpers.checkpoints import read_checkpoint, write_checkpoint
from helpers.encoders import LearnedCodes
from helpers.models.assembly import Model

RECIPES: dict[str, Callable[..., Model]] = {}


def recipe(build: Callable[..., Model]) -> Callable[..., Model]:
    """Make a recipe note, on every model that it builds, what it was called with. Introduced in notebook 06."""
    signature = inspect.signature(build)

    @functools.wraps(build)
    def noting(*args: Any, **kwargs: Any) -> Model:
        model = build(*args, **kwargs)
        model.recipe = {"name": build.__name__, "arguments": dict(signature.bind(*args, **kwargs).arguments)}
        return model

    RECIPES[build.__name__] = noting
    return noting


def save(model: Model, path: str | Path, codes: bool = True) -> None:
    """Write a model to a safetensors file: either whole or not there.

    `codes=False` leaves out the learned codes of the training samples, which a model for new data does not need. Of a
    model that no recipe built, or one with arguments that a file cannot hold (functions, objects), the file holds the
    weights only, and `load(path, model)` takes them. Introduced in notebook 06.
    """
    arguments = {name: written(value) for name, value in model.recipe["arguments"].items()}
    state, tables = model.state_dict(), tables_of(model)
    kept = {name: [table.n_obs if codes else 0, *table.modalities] for name, table in tables.items()}
    for name in tables if not codes else ():
        state |= {key: value[:0] for key, value in state.items() if key.startswith(f"{name}.")}
    header = {"recipe": model.recipe["name"], "arguments": arguments, "codes": kept, "features": model.features}
    header["categories"] = {column: [written(name) for name in names] for column, names in model.categories.items()}
    write_checkpoint(Path(path), header, state)


def load(path: str | Path, model: Model | None = None) -> Model:
    """The model in a file that `save` wrote, ready for use; `model`, built by the caller, takes the weights instead
    where the file does not say how to build it. The training data are not needed.

    Raises `ValueError` for a damaged file, an unknown recipe, or weights of another shape. Introduced in notebook 06.
    """
    header, state = read_checkpoint(Path(path))
    if model is None:
        model = built(path, header)
    for name, table in tables_of(model).items():
        n_obs, *modalities = header.get("codes", {}).get(name, [table.n_obs, *table.modalities])
        table.resize(n_obs)
        table.modalities = tuple(modalities)
    model.features, model.categories = header.get("features", {}), header.get("categories", {})
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {path} are not of this model: {str(error).splitlines()[-1].strip()}"
        ) from error
    return model.eval()


def built(path: str | Path, header: Mapping[str, Any]) -> Model:
    """An untrained model as the header of a file describes it."""
    name, arguments = header.get("recipe", ""), {k: read(v) for k, v in header.get("arguments", {}).items()}
    if name not in RECIPES or any(value is Unwritten for value in arguments.values()):
        what = ", ".join(k for k, v in arguments.items() if v is Unwritten) or "recipe"
        raise ValueError(f"{path} cannot say how its model is built ({what}): build it, and call load(path, model)")
    return RECIPES[name](**arguments)


class Unwritten:
    """Stands for an argument that a file could not hold."""


def written(value: Any) -> Any:
    """An argument as JSON; classes of heads by their names, {"?": …} where it has no such form."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {"map": {str(k): written(v) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return [written(v) for v in value]
    known = isinstance(value, type) and getattr(decoders, value.__name__, None) is value
    return {"head": value.__name__} if known else {"?": type(value).__name__}


def read(value: Any) -> Any:
    """What `written` wrote."""
    if isinstance(value, list):
        found = [read(v) for v in value]
        return Unwritten if Unwritten in found else found
    if not isinstance(value, Mapping):
        return value
    if "map" in value:
        found = {k: read(v) for k, v in value["map"].items()}
        return Unwritten if Unwritten in found.values() else found
    head = getattr(decoders, value["head"], None) if "head" in value else None
    return head if isinstance(head, type) and issubclass(head, nn.Module) else Unwritten


def tables_of(model: nn.Module) -> dict[str, LearnedCodes]:
    """Name -> table of learned codes."""
    return {name: part for name, part in model.named_modules() if isinstance(part, LearnedCodes)}
