"""Seconds per epoch of autoencodix' Varix on a simulated continuous matrix; prints one line of JSON.

Runs in `.venv-autoencodix` (see peers.mk):  .venv-autoencodix/bin/python benchmarks/peer_autoencodix.py

Its preprocessing is passed by: a finished training set is handed over, so that only its training loop is
timed. Everything that costs time and is not training is off: no validation, no stored dynamics, no printed
losses; its gradient clipping (on by default) is off too unless `--clip` asks for it. It stores a checkpoint
in its last epoch whatever is asked, so one epoch more is trained and that one is not counted.
"""

import argparse
import contextlib
import sys
import warnings

import autoencodix
import simulated
import stopwatch
import torch
from autoencodix.configs.varix_config import VarixConfig
from autoencodix.data._datasetcontainer import DatasetContainer
from autoencodix.data._numeric_dataset import NumericDataset
from autoencodix.trainers._general_trainer import GeneralTrainer

CLOCK = stopwatch.Laps()
LOSSES: list[float] = []


class TimedTrainer(GeneralTrainer):
    """Its own trainer; the only addition is the time at which each epoch ends."""

    def train(self, *args: object, **kwargs: object) -> object:
        CLOCK.start()
        return super().train(*args, **kwargs)

    def _log_losses(self, epoch: int, split: str, total_loss: float, *args: object, **kwargs: object) -> None:
        super()._log_losses(epoch, split, total_loss, *args, **kwargs)
        CLOCK.lap()
        LOSSES.append(total_loss)


def parse() -> argparse.Namespace:
    parser = stopwatch.arguments("Time autoencodix Varix (hidden layers of 1/4 and 1/16 the input).")
    parser.add_argument("--n-latent", type=int, default=8)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--clip", type=float, help="largest gradient norm; its own default is 5")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "mps", "auto"])
    return parser.parse_args()


def settings(options: argparse.Namespace) -> VarixConfig:
    """Its configuration with all that is not training switched off."""
    epochs = options.epochs + 2
    return VarixConfig(
        n_layers=2,
        enc_factor=4,
        latent_dim=options.n_latent,
        drop_p=0.1,
        beta=options.beta,
        anneal_function="no-annealing",
        epochs=epochs,
        batch_size=options.batch_size,
        grad_clip_max_norm=options.clip,
        checkpoint_interval=epochs,
        save_memory=True,
        device=options.device,
        global_seed=options.seed,
    )


def train(options: argparse.Namespace) -> list[int]:
    """Train; returns the hidden widths of the encoder as built."""
    config = settings(options)
    x = simulated.gaussian(options.n_obs or 5000, options.n_vars, seed=options.seed)
    names = [f"gene{i}" for i in range(x.shape[1])]
    trainset = NumericDataset(data=torch.from_numpy(x), config=config, feature_ids=names)
    varix = autoencodix.Varix(data=DatasetContainer(train=trainset), trainer_type=TimedTrainer, config=config)
    varix.fit()
    layers = varix.result.model._encoder
    return [layer.out_features for layer in layers if isinstance(layer, torch.nn.Linear)]


def main() -> None:
    options = parse()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    with contextlib.redirect_stdout(sys.stderr):
        widths = train(options)
    stopwatch.report(
        CLOCK,
        options.epochs,
        LOSSES[options.epochs],
        tool="autoencodix Varix",
        version=autoencodix.__version__,
        torch=torch.__version__,
        n_obs=options.n_obs or 5000,
        n_vars=options.n_vars,
        widths=widths,
        n_latent=options.n_latent,
        batch_size=options.batch_size,
        threads=torch.get_num_threads(),
        device=options.device,
    )


if __name__ == "__main__":
    main()
