"""Seconds per epoch of `helpers.training.fit`; prints one line of JSON.

    python benchmarks/ours.py --model scvi     SCVI's network and negative binomial, put together from our parts
    python benchmarks/ours.py --model varix    Varix, two hidden layers

The same data, widths, batch size, optimiser and number of epochs as `bare_loop.py` and the peers' programs.
"""

import anndata as ad
import mudata as md
import simulated
import stopwatch
import torch

from helpers import fusion, models, penalties, training
from helpers.batches import Samples
from helpers.decoders import DenseDecoder, NegativeBinomialHead
from helpers.encoders import DenseEncoder
from helpers.priors import StandardNormal
from helpers.schedules import scaled


def scvi_like(n_vars: int, n_hidden: int = 128, n_latent: int = 10) -> models.Model:
    """SCVI's parts (Lopez et al. 2018): log1p encoder, softmax times library, one dispersion per gene."""
    hidden = [n_hidden, n_hidden]
    return models.Model(
        encoders=[DenseEncoder({"rna": n_vars}, n_latent, hidden, transform={"rna": torch.log1p})],
        fuse=fusion.concatenate,
        prior=StandardNormal(n_latent),
        decoders=[DenseDecoder(n_latent, hidden, {"rna": NegativeBinomialHead(n_hidden, n_vars)}, dropout=0.0)],
        penalties={"kl": penalties.kl},
    )


def main() -> None:
    parser = stopwatch.arguments("Time our training loop.")
    parser.add_argument("--model", choices=["scvi", "varix"], required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16"])
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    scvi = options.model == "scvi"
    n_obs = options.n_obs or (8000 if scvi else 5000)
    make = simulated.counts if scvi else simulated.gaussian
    mdata = md.MuData({"rna": ad.AnnData(make(n_obs, options.n_vars, seed=options.seed))})
    mdata.uns["dataset"] = {"modalities": {"rna": "counts" if scvi else "continuous"}}
    samples = Samples(mdata, options.device)
    model = scvi_like(options.n_vars) if scvi else models.varix(samples.n_vars, 8)
    laps = stopwatch.Laps()
    history = training.fit(
        model,
        samples,
        epochs=options.epochs + 1,
        batch_size=options.batch_size,
        weight_decay=1e-6 if scvi else 0.01,
        optimiser=adam if scvi else torch.optim.AdamW,
        weights={"kl": scaled(1.0, lambda t, T: t / 400) if scvi else 0.1},
        precision=options.precision,
        compile=options.compile,
        record=lambda model, samples: laps.lap() or {},
        progress=False,
    )
    stopwatch.report(
        laps,
        options.epochs,
        history.query("split == 'train' and term == 'total'").value.iloc[-1],
        tool=f"helpers {options.model}",
        version=options.precision + (" compiled" if options.compile else ""),
        torch=torch.__version__,
        n_obs=n_obs,
        n_vars=options.n_vars,
        widths=[m.out_features for m in model.encoders[0].body.modules() if isinstance(m, torch.nn.Linear)],
        n_latent=model.prior.n_latent,
        batch_size=options.batch_size,
        threads=torch.get_num_threads(),
        device=str(samples.device),
    )


def adam(parameters, lr: float, weight_decay: float, fused: bool) -> torch.optim.Optimizer:
    """SCVI's optimiser: Adam with eps 0.01."""
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, eps=0.01, fused=fused)


if __name__ == "__main__":
    main()
