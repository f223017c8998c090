"""One file per model family, each a recipe that puts parts together."""

from helpers.models.assembly import Model, n_parameters
from helpers.models.vae import vanillix, varix

__all__ = ["Model", "n_parameters", "vanillix", "varix"]
