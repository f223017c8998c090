"""Files from which a training continues: one safetensors file with a JSON header. Nothing in them is executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from helpers.project import write_atomic


def write_checkpoint(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Header (JSON values) and tensors in one file, either whole or not there. Introduced in notebook 01."""
    write_atomic(path, save({k: v.contiguous() for k, v in tensors.items()}, {"run": json.dumps(header)}))


def read_checkpoint(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """Header and tensors of a checkpoint; a file that is damaged is a `ValueError`. Introduced in notebook 01."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["run"]), {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"checkpoint {path} is damaged or not one of ours ({error}): delete it to start over"
        ) from error


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix/`, without it. Introduced in notebook 01."""
    return {name.removeprefix(f"{prefix}/"): v for name, v in tensors.items() if name.startswith(f"{prefix}/")}


def nested(flat: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """{"0/step": t} -> {0: {"step": t}}: an optimiser's slots. Introduced in notebook 01."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        number, key = name.split("/", 1)
        slots.setdefault(int(number), {})[key] = value
    return slots


def random_states(generators: Mapping[str, torch.Generator], device: torch.device) -> dict[str, Tensor]:
    """States of one's own generators and of the global ones of the CPU and the device. Introduced in notebook 01."""
    states = {name: generator.get_state() for name, generator in generators.items()}
    states["cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(
    states: Mapping[str, Tensor], generators: Mapping[str, torch.Generator], device: torch.device
) -> None:
    """Undo all draws since `random_states`. Introduced in notebook 01."""
    for name, generator in generators.items():
        generator.set_state(states[name])
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
