"""Seconds per epoch of scvi-tools' SCVI on simulated counts; prints one line of JSON.

Runs in `.venv-peers` (see peers.mk):  .venv-peers/bin/python benchmarks/peer_scvi.py --threads 2

Everything that costs time and is not training is off: no validation, no progress bar, no logger, no
checkpoints. The matrix is dense and in memory, and all cells are training cells.
"""

import argparse
import contextlib
import logging
import sys
import warnings

import anndata
import lightning.pytorch as pl
import scvi
import simulated
import stopwatch
import torch
from scipy.sparse import csr_matrix


class EpochClock(pl.Callback):
    """Takes the time at the end of each training epoch, and the epoch's mean loss per cell."""

    def __init__(self) -> None:
        self.laps = stopwatch.Laps()
        self.losses: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.laps.start()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.laps.lap()
        self.losses.append(float(trainer.callback_metrics["train_loss"]))


def parse() -> argparse.Namespace:
    parser = stopwatch.arguments("Time scvi-tools SCVI (negative binomial, 2 x 128, latent 10).")
    parser.add_argument("--sparse", action="store_true", help="give it CSR, loaded as sparse tensors")
    parser.add_argument("--compile", action="store_true", help="its torch.compile option")
    parser.add_argument("--accelerator", default="cpu", help="Lightning's name: cpu, gpu, mps, auto")
    return parser.parse_args()


def build(options: argparse.Namespace) -> scvi.model.SCVI:
    """The model on the simulated counts, [n_obs, n_vars]."""
    x = simulated.counts(options.n_obs or 8000, options.n_vars, seed=options.seed)
    adata = anndata.AnnData(csr_matrix(x) if options.sparse else x)
    scvi.model.SCVI.setup_anndata(adata)
    return scvi.model.SCVI(adata, n_layers=2, n_hidden=128, n_latent=10, gene_likelihood="nb", dispersion="gene")


def train(model: scvi.model.SCVI, options: argparse.Namespace) -> EpochClock:
    """Train for one uncounted and `options.epochs` measured epochs."""
    clock = EpochClock()
    model.train(
        max_epochs=options.epochs + 1,
        accelerator=options.accelerator,
        devices=1,
        train_size=1.0,
        batch_size=options.batch_size,
        load_sparse_tensor=options.sparse,
        plan_kwargs={"compile": options.compile},
        enable_progress_bar=False,
        enable_checkpointing=False,
        logger=False,
        callbacks=[clock],
    )
    return clock


def main() -> None:
    options = parse()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    scvi.settings.verbosity = logging.ERROR
    scvi.settings.seed = options.seed
    scvi.settings.dl_num_workers = 0  # workers would copy every batch between processes
    with contextlib.redirect_stdout(sys.stderr):
        model = build(options)
        clock = train(model, options)
    stopwatch.report(
        clock.laps,
        options.epochs,
        clock.losses[options.epochs],
        tool="scvi-tools SCVI" + (" compiled" if options.compile else "") + (" CSR" * options.sparse),
        version=scvi.__version__,
        torch=torch.__version__,
        n_obs=model.adata.n_obs,
        n_vars=model.adata.n_vars,
        widths=[128, 128],
        n_latent=10,
        batch_size=options.batch_size,
        threads=torch.get_num_threads(),
        device=options.accelerator,
    )


if __name__ == "__main__":
    main()
