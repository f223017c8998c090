"""Integration of batches on real data: MIMA, other methods, simple baselines and controls in one table (notebook 07).

    WORKBOOK_DATA=... PYTHONPATH=. .venv-peers/bin/python benchmarks/integration.py [--data pbmc-mosaic] [--seeds 3]
    ... [--fits paired] [--methods MIMA Harmony controls] [-p epochs=100]

`make peers` installs the environment. Settings of MIMA are those of notebook 07, read from it: its profile `real`, for
sim-spatial its defaults; `-p` changes one. Every method is fitted without labels; MIMA trains on the 80 % of the
samples that its split gives it and embeds all, the others see all. Methods that start from random numbers run once per
seed; PCA does not.

pbmc-mosaic is fitted twice: "paired", two batches of 400 cells with both modalities, on which peers were measured; and
"mosaic", all four batches, two of which lack a modality. Of a mosaic's fit, the samples that have everything, those
that have one modality, and all of them are scored apart, each for the methods that place every one of them. Every row
is scored by `metrics.integration` and, where installed, again by scib-metrics. A batch without any label (the 5k of
pbmc-citeseq) adds "unlabelled": all samples as one class, of which only the mixing of batches means anything.

Writes results/integration_<data>.csv, a row per fit, set of samples, scorer, method and seed. A call replaces the rows
of the methods that it ran and leaves the others; no row depends on another.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mudata import MuData

from helpers import datasets, integration, mosaics, parameters, project, views
from helpers.checks import assemble, parts_of
from helpers.metrics import integration as scoring

RESULTS = Path(__file__).parent / "results"
NOTEBOOK = project.ROOT / "notebooks" / "07_mima_integration.ipynb"
OPTIONS = {"pbmc-citeseq": {"with_5k": True, "batch_key": "batch"}}  # of the loader
FITS = {"pbmc-mosaic": {"paired": ["p3_0", "p4_0"], "mosaic": []}}  # batches; [] for all
OURS = (mosaics.OURS, mosaics.PUBLISHED, mosaics.UNIMODAL)
CONTROLS, LABEL, BATCH = "controls", "label", "batch"
OF_SCIB = "scib-metrics"
KEYS = ["fit", "samples", "scored_by", "method", "seed"]
SHOWN = ("leiden_nmi", "leiden_clusters", "leiden_nmi_1", "silhouette_label", "bio", "batch", "total", "total4")
Found = dict[str, dict[int, np.ndarray]]  # method -> seed -> embedding [n_obs, n_latent], NaN where it places none


def within_batches(mdata: MuData, batch_key: str, n_latent: int = 20, seed: int = 0) -> np.ndarray:
    """Concatenated PCA of features that are standardised within each batch: what one line does against batches."""
    batch, x = views.batch_of(mdata, batch_key), views.inputs(mdata)
    for values in x.values():
        for name in np.unique(batch):
            part = values[batch == name]
            values[batch == name] = (part - part.mean(0)) / np.where(part.std(0) > 0, part.std(0), 1)
    return mosaics.components(mosaics.side_by_side(x), n_latent, seed)


def methods(modalities: Sequence[str]) -> dict[str, integration.Method]:
    """All methods beside MIMA, without PCA, which is among the controls."""
    known = {name: method for name, method in integration.METHODS.items() if "PCA" not in name}
    known |= {"PCA within batches": integration.Method(within_batches, "two batches")}
    alone = modalities if len(modalities) > 1 else ()
    return known | {f"Harmony, {m}": known["Harmony"].on(modality=m) for m in alone}


@dataclass(frozen=True)
class Study:
    """One fit: raw and prepared data of the same samples, and how our models are trained."""

    raw: MuData
    data: MuData
    label_key: str
    batch_key: str
    how: mosaics.Training
    settings: str  # of MIMA, as JSON

    @property
    def n_latent(self) -> int:
        """Dimensions of every embedding."""
        return json.loads(self.settings)["n_latent"]


def study(name: str, batches: Sequence[str], given: Mapping[str, str]) -> Study:
    """The data of one fit, treated as in notebook 07, with the notebook's settings."""
    profile = "defaults" if name.startswith("sim-") else "real"
    p, _ = parameters.resolve(NOTEBOOK, profile, given)
    raw = datasets.load(name, **OPTIONS.get(name, {}))
    label, batch = (raw.uns["dataset"][key] for key in ("label_key", "batch_key"))
    if batches:
        raw = raw[raw.obs[batch].astype(str).isin(batches).to_numpy()].copy()
    raw = mosaics.chosen(without_empty(raw), batch, p["n_batches"], p["n_samples"], p["n_features"], p["seed"])
    raw = mosaics.logged(raw, [m for m in p["log"] if m in raw.mod])
    sizes = {key: p[key] for key in ("n_latent", "hidden", "narrow")}
    apart = {key: p[key] for key in ("adversary", "mixing", "orthogonal")}
    trained = {key: p[key] for key in ("translation", "prior_expert", "epochs", "batch_size", "lr")}
    how = mosaics.plan(batch, sizes, apart, **trained)
    settings = json.dumps(sizes | apart | trained)
    print(f"{name}: {raw.n_obs} samples, {raw.obs[batch].nunique()} batches; {settings}", flush=True)
    return Study(raw, mosaics.prepared(raw, batch, p["seed"]), label, batch, how, settings)


def without_empty(mdata: MuData) -> MuData:
    """The data without categories that no sample has."""
    parts = parts_of(mdata)
    whole = parts.obs.select_dtypes("category").columns
    return assemble(
        replace(parts, obs=parts.obs.assign(**{c: parts.obs[c].cat.remove_unused_categories() for c in whole}))
    )


# ---------------------------------------------------------------- embeddings


def fitted(of: Study, asked: Sequence[str], seeds: int) -> tuple[Found, dict[str, float], dict[str, str]]:
    """Embeddings, CPU seconds of a fit, and what was skipped with the reason."""
    found, seconds, skipped = {}, {}, {}
    for variant in [v for v in of.how.variants if v in asked]:
        runs = []
        for seed in range(seeds):
            setting = {"variant": variant, "seed": seed}
            spent, made = timed(mosaics.outcome, of.data, of.how, of.batch_key, setting)
            runs.append(setting | made)
            seconds[variant] = seconds.get(variant, 0.0) + spent / seeds
        print(f"  {variant}: {seconds[variant]:.1f} CPU s", flush=True)
        named = mosaics.rivals(runs, integration.Runs())
        found |= {name: dict(enumerate(each)) for name, each in named.items() if each}
    for name, method in methods(list(of.raw.mod)).items():
        if name not in asked:
            continue
        if method.package and method.is_installed:
            importlib.import_module(method.package)  # which is no part of a fit
        n = 1 if "PCA" in name else seeds
        for seed in range(n):
            spent, runs = timed(integration.run, {name: method}, of.raw, of.batch_key, of.n_latent, seed, False)
            if not runs.embeddings:
                skipped[name] = runs.skipped["reason"].iloc[0]
                break
            found.setdefault(name, {})[seed] = runs.embeddings[name]
            seconds[name] = seconds.get(name, 0.0) + spent / n
        print(f"  {name}: {skipped.get(name) or f'{seconds[name]:.1f} CPU s'}", flush=True)
    return found, seconds, skipped


def timed(what: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    """CPU seconds of this process, over all its threads, and the result."""
    start = time.process_time()
    result = what(*given)
    return time.process_time() - start, result


# ---------------------------------------------------------------- scores


def subsets(of: Study) -> dict[str, tuple[np.ndarray, pd.Series]]:
    """Which samples are scored together, and their labels: name -> (rows [n_obs], labels [n_obs])."""
    labels = of.raw.obs[of.label_key].astype(object)
    has = {m: views.measured(of.raw, m) for m in of.raw.mod}
    sets = {"all": labels.notna().to_numpy()}
    for name, rows in ({f"with {m}": has[m] for m in has} | {"with everything": np.all(list(has.values()), 0)}).items():
        if not any((rows & sets["all"] == there).all() for there in sets.values()):
            sets[name] = rows & sets["all"]
    found = {name: (rows, labels) for name, rows in sets.items()}
    batch = of.raw.obs[of.batch_key].astype(str)
    if set(batch[labels.notna()]) != set(batch):
        found["unlabelled"] = np.ones(of.raw.n_obs, bool), pd.Series("any", labels.index)
    return found


def scored(found: Found, of: Study, rows: np.ndarray, labels: pd.Series, with_controls: bool) -> pd.DataFrame:
    """Scores of the methods that place all of the samples in `rows` [n_obs], by ours and by scib-metrics."""
    x = {m: values[rows] for m, values in views.inputs(of.raw).items() if np.isfinite(values[rows]).all()}
    obs = pd.DataFrame({LABEL: labels[rows], BATCH: of.raw.obs[of.batch_key][rows].astype(str)})
    each = {(name, seed): z[rows] for name, seeds in found.items() for seed, z in seeds.items()}
    each = {key: z for key, z in each.items() if np.isfinite(z).all()}
    before = mosaics.side_by_side(x) if x else None
    controls = scoring.controls(x, obs[LABEL], of.n_latent) if with_controls else {}
    each |= {(name, 0): z for name, z in controls.items()}
    tables = [scoring.table(each, obs, LABEL, BATCH, controls={}, before=before)]
    tables += [by_scib(each, obs, before)] if importlib.util.find_spec("scib_metrics") else []
    result = pd.concat(tables, keys=["ours", OF_SCIB][: len(tables)], names=["scored_by", "method", "seed"])
    return result.reset_index().assign(control=lambda t: t["method"].isin(list(controls)))


def by_scib(each: Mapping[tuple[str, int], np.ndarray], obs: pd.DataFrame, before: np.ndarray | None) -> pd.DataFrame:
    """The same by scib-metrics; a row that it cannot score has its reason in `notes`."""
    rows = {}
    for key, z in each.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows[key] = scoring.scib_scores(z, obs[LABEL], obs[BATCH], before=before).to_dict()
        except Exception as error:  # of that package; its failure on one embedding must not cost the other rows
            rows[key] = {"notes": f"{type(error).__name__}: {str(error)[:200]}"}
    return pd.DataFrame.from_dict(rows, orient="index")


def benchmark(name: str, fit: str, asked: Sequence[str], seeds: int, given: Mapping[str, str]) -> pd.DataFrame:
    """All rows of one fit."""
    of = study(name, FITS.get(name, {}).get(fit, []), given)
    found, seconds, skipped = fitted(of, asked or [*OURS, *methods(list(of.raw.mod)), CONTROLS], seeds)
    with_controls = not asked or CONTROLS in asked
    tables = []
    for samples, (rows, labels) in subsets(of).items():
        print(f"  scoring {samples}: {rows.sum()} samples", flush=True)
        table = scored(found, of, rows, labels, with_controls).assign(samples=samples, n_obs=rows.sum())
        cost = [
            next((seconds[k] for k in sorted(seconds, key=len)[::-1] if m.startswith(k)), np.nan)
            for m in table["method"]
        ]
        mine = table["method"].str.startswith(OURS)
        tables.append(table.assign(cpu_seconds=cost, settings=np.where(mine, of.settings, "")))
    lost = pd.DataFrame({"method": list(skipped), "notes": [f"skipped: {reason}" for reason in skipped.values()]})
    result = pd.concat([*tables, lost.assign(samples="none", scored_by="ours", seed=0, control=False)])
    return result.assign(fit=fit)[[*KEYS, *(c for c in result if c not in KEYS)]]


def kept(path: Path, new: pd.DataFrame) -> pd.DataFrame:
    """The rows of a file with those of `new` in place of what was there of the same fits and methods; stored."""
    if path.exists():
        old = pd.read_csv(path)
        same = set(zip(new["fit"], new["method"], strict=True))
        stays = [key not in same for key in zip(old["fit"], old["method"], strict=True)]
        new = pd.concat([old[stays], new])
    path.parent.mkdir(exist_ok=True)
    new.to_csv(path, index=False, float_format="%.5g")
    return new


def shown(table: pd.DataFrame) -> str:
    """A markdown table per fit and set of samples: means ± standard deviations over seeds, controls last."""
    parts = []
    for (fit, samples), rows in table.query("samples != 'none'").groupby(["fit", "samples"], sort=False):
        ours, scib = (rows[rows["scored_by"] == by] for by in ("ours", OF_SCIB))
        columns = {c: spreads(ours, c) for c in SHOWN}
        columns |= {f"{c}, scib": spreads(scib, c) for c in ("total", "total4") if len(scib)}
        columns["CPU s"] = ours.groupby("method")["cpu_seconds"].first().map("{:.1f}".format)
        order = ours.groupby(["control", "method"])["total4"].mean().reset_index()
        order = order.sort_values(["control", "total4"], ascending=[True, False])["method"]
        body = pd.DataFrame(columns).loc[order].replace("nan", "–")
        lines = ["| method | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        lines += [
            f"| {name} | " + " | ".join(values) + " |" for name, values in zip(body.index, body.to_numpy(), strict=True)
        ]
        parts.append(f"\n{fit}, {samples}: {int(ours['n_obs'].iloc[0])} samples\n\n" + "\n".join(lines))
    return "\n".join(parts)


def spreads(rows: pd.DataFrame, column: str) -> pd.Series:
    """Mean of a column per method, and ± the standard deviation where there are several seeds."""
    each = rows.assign(**{column: rows[column].astype(float)}).groupby("method")[column]
    digits = 0 if "clusters" in column else 3
    found = zip(each.mean(), each.std(), strict=True)
    text = [f"{m:.{digits}f}" + (f" ± {sd:.3f}" if sd == sd and digits else "") for m, sd in found]
    return pd.Series(text, each.mean().index)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="pbmc-mosaic", help="a name of the registry")
    parser.add_argument("--fits", nargs="+", help="of pbmc-mosaic: paired, mosaic; all by default")
    parser.add_argument("--methods", nargs="+", default=[], help="all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-p", action="append", default=[], metavar="NAME=VALUE", help="a parameter of notebook 07")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    given = dict(pair.split("=", 1) for pair in args.p)
    path = RESULTS / f"integration_{args.data}.csv"
    for fit in args.fits or FITS.get(args.data, {"all": []}):
        table = kept(path, benchmark(args.data, fit, args.methods, args.seeds, given))
    print(shown(table))


if __name__ == "__main__":
    main()
