"""One file per model family, each a recipe that puts parts together."""

from helpers.models.assembly import Model, n_parameters
from helpers.models.dgd import decoder, dgd, scdgd, vad
from helpers.models.maskix import maskix
from helpers.models.mima import mean_squared, mima, mima_unimodal
from helpers.models.multidgd import multidgd
from helpers.models.ontix import ontix
from helpers.models.stackix import stackix
from helpers.models.storage import load, save
from helpers.models.vae import disentanglix, vanillix, varix
from helpers.models.xmodalix import imagix, part, xmodalix

__all__ = [
    "Model",
    "decoder",
    "dgd",
    "disentanglix",
    "imagix",
    "load",
    "maskix",
    "mean_squared",
    "mima",
    "mima_unimodal",
    "multidgd",
    "n_parameters",
    "ontix",
    "part",
    "save",
    "scdgd",
    "stackix",
    "vad",
    "vanillix",
    "varix",
    "xmodalix",
]
