"""X-modalix in the variants that notebook 04 compares, trained alike everywhere, and what is kept of each run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd
import torch

from helpers import alignment, controls, datasets, models, penalties, tasks, training
from helpers.balance import Shares, contributions
from helpers.batches import Samples
from helpers.models import Model
from helpers.models.assembly import Penalty
from helpers.scenarios import Scenario, aligned, baselines, reader, score, scored_rows, walk

ALIGNMENT = {"paired": 0.15, "adversarial": 0.02}  # wanted shares of the loss where samples come in pairs
CLASSES = {"class": 0.35, "adversarial": 0.02}  # and where only classes join the modalities
COLUMNS = ("method", "kind", "seed", "R2 over mean", "own side", "FOSCTTM", "label transfer", "modality accuracy")


@dataclass(frozen=True)
class Variant:
    """A way to train X-modalix: the terms it has beside the usual ones, and the shares of the loss that are wanted.

    What `shares` leaves of the loss goes to reconstruction and translation. Introduced in notebook 04.
    """

    shares: Mapping[str, float]
    extra: Mapping[str, Penalty | None] = field(default_factory=dict)
    from_pca: bool = False


def variants(given: Scenario) -> dict[str, Variant]:
    """The variants that notebook 04 compares, for data with pairs or with classes alone."""
    usual = dict(ALIGNMENT if given.paired else CLASSES)
    apart = {k: v for k, v in usual.items() if k != "adversarial"}
    found = {
        "X-modalix": Variant(usual),
        "no adversary": Variant(apart, {"adversarial": None}),
        "with cycle": Variant(usual | {"cycle": 0.05}, {"cycle": penalties.cycle}),
    }
    if given.paired:
        translated = {"translation": partial(penalties.translation, to=given.target)}
        found["with translation"] = Variant(usual | {"translation": 0.35}, translated)
        found["from PCA"] = Variant(usual | {"translation": 0.35}, translated, from_pca=True)
    return found


@dataclass(frozen=True)
class Training:
    """How the models of the notebook are trained, whatever the scenario. Introduced in notebook 04."""

    n_latent: int = 16
    n_hidden: int = 256  # of the dense encoders and decoders, one layer
    width: int = 8  # channels of the first convolution
    noise: float = 0.5  # sd of noise on standardised profiles, against overfitting few samples
    dropout: float = 0.1
    epochs: int = 80
    n_batches: int = 12  # steps per epoch, so that small and large data are trained alike
    lr: float = 2e-3
    pretrain: int = 0  # epochs in which the target's autoencoder trains alone

    def options(self, samples: Samples, seed: int, lr: float = 1.0) -> dict:
        """Arguments of `training.fit`."""
        size = max(16, -(-len(samples.rows("train")) // self.n_batches))
        rate = {"lr": self.lr * lr, "decay": "cosine", "clip_norm": 5.0}
        return rate | {"epochs": self.epochs, "batch_size": size, "seed": seed, "progress": False}


def train(
    given: Scenario, variant: Variant, how: Training, kl: float = 0.05, seed: int = 0
) -> tuple[Model, pd.DataFrame]:
    """One variant of X-modalix and its history, which holds the discriminator's accuracy on valid as "accuracy".

    A model that begins as PCA trains at a quarter of the learning rate: it has less to find. Introduced in notebook 04.
    """
    torch.manual_seed(seed)
    samples = given.samples
    model = models.xmodalix(
        samples.n_vars,
        samples.shapes,
        how.n_latent,
        width=how.width,
        hidden=[how.n_hidden],
        dropout=how.dropout,
        classes=samples.n_classes if "class" in variant.shares else None,
        extra=variant.extra,
        noise={m: how.noise for m in samples.n_vars if m not in samples.shapes},
        skip=variant.from_pca,
    )
    if variant.from_pca:
        together = {m: given.x(m, "train", *given.mdata.mod) for m in given.mdata.mod}
        controls.start_aligned(model, together, given.target)
    options = how.options(samples, seed, 0.25 if variant.from_pca else 1.0)
    if how.pretrain:
        alone = options | {"epochs": how.pretrain, "weights": {"kl": 0.01}}
        training.fit(models.part(model, given.target), samples, **alone)
    with warnings.catch_warnings():  # shares that come out are shown
        warnings.filterwarnings("ignore", "shares of the loss were not reached")
        return model, training.fit(model, samples, weights=wanted(given, variant, kl), record=accuracy, **options)


def wanted(given: Scenario, variant: Variant, kl: float = 0.05) -> Shares:
    """Wanted shares of the loss: what the variant says, `kl` for the KL divergences, and reconstruction the rest, two
    thirds of it for the target. Introduced in notebook 04.
    """
    rest = 1 - kl - sum(variant.shares.values())
    nll = {f"nll/{given.target}": rest * 2 / 3, f"nll/{given.source}": rest / 3}
    return Shares(nll | {"kl": kl} | dict(variant.shares), anneal={"kl": "logistic-early"})


def accuracy(model: Model, samples: Samples) -> dict[str, float]:
    """How often the model's own discriminator names the modality of a valid sample's posterior mean."""
    adversary, right = model.penalties.get("adversarial"), []
    if adversary is None:
        return {}
    for k, m in enumerate(samples.modalities):
        z = tasks.embed(model, samples, "valid", modality=m)
        z = torch.from_numpy(z[np.isfinite(z[:, 0])]).to(samples.device)
        right.append(float((adversary.told(z) == k).float().mean()))
    return {"accuracy": float(np.mean(right))}


# ---------------------------------------------------------------- the target by itself


def ceilings(given: Scenario, how: Training, seed: int = 0) -> dict[str, np.ndarray]:
    """The target told from itself, for pairs: by as many principal components, and by an autoencoder of it alone.

    What no translation through a latent space of this size should surpass by much. Introduced in notebook 04.
    """
    if not given.paired:
        return {}
    train_rows, y = given.x(given.target, "train"), given.x(given.target, "test", given.source)
    components = controls.pca(train_rows, min(how.n_latent, min(train_rows.shape) - 1))
    x_hat, _ = alone(given, how, seed)
    found = {f"PCA of {given.target}": components.decode(components.embed(y))}
    return found | {f"{given.target} alone": x_hat[scored_rows(given)]}


def alone(given: Scenario, how: Training, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A variational autoencoder of the target by itself: its reconstruction [n_obs, n_vars] and embedding [n_obs,
    n_latent], NaN for samples without the target. Introduced in notebook 04.
    """
    torch.manual_seed(seed)
    n_vars = given.samples.n_vars[given.target]
    if given.shape:
        model = models.imagix(given.shape, how.n_latent, how.width, given.target)
    else:
        model = models.varix({given.target: n_vars}, how.n_latent, n_layers=1, dropout=how.dropout)
    samples = Samples(datasets.only(given.mdata, [given.target]), given.samples.device)
    training.fit(model, samples, weights={"kl": 0.01}, **how.options(samples, seed))
    x_hat, z = (np.full((given.mdata.n_obs, n), np.nan, np.float32) for n in (n_vars, how.n_latent))
    rows = given.mdata.obs_names.get_indexer(samples.obs_names)
    x_hat[rows], z[rows] = tasks.reconstruct(model, samples)[given.target], tasks.embed(model, samples)
    return x_hat, z


# ---------------------------------------------------------------- what a sweep keeps


def outcome(given: Scenario, name: str, how: Training, kl: float = 0.05, seed: int = 0, align: float = 0.0) -> dict:
    """Train the variant `name` and keep what the notebook shows of it, as arrays, numbers and texts for a sweep.

    `x_hat` the translated test samples, `sd` what the posterior leaves open of them, `x_all` the translation of all
    samples where the target is a profile, `self` the target decoded from its own side, `z_source` and `z_target`
    posterior means of all samples, `walk_source` and `walk_target` the `steps` of a `walk` decoded, `centres_*` class
    centres decoded from either side, `history` in JSON: shares of the loss and accuracy of the discriminator. `align`
    > 0 is the share of alignment in place of the variant's.
    Introduced in notebook 04.
    """
    variant = variants(given)[name]
    if align:
        variant = replace(variant, shares=variant.shares | {"paired" if given.paired else "class": align})
    model, history = train(given, variant, how, kl, seed)
    sides = {"source": given.source, "target": given.target}
    z = {m: tasks.embed(model, given.samples, modality=m) for m in sides.values()}
    own = tasks.translate(model, given.samples, given.target, given.target)
    told = tasks.translate(model, given.samples, given.source, given.target)
    here = given.rows("test", given.target, *([given.source] if given.paired else []))
    found = {"x_hat": told[scored_rows(given)], "self": own[here]}
    found |= {f"z_{side}": z[m] for side, m in sides.items()} | aligned(given, z)
    sd = tasks.uncertainty(model, given.samples, given.source, given.target, "test", draws=20, seed=seed)
    found["sd"] = sd[np.searchsorted(given.rows("test"), scored_rows(given))]
    found |= {"x_all": told} if given.shape is None else {}
    steps, places = walk(given, z[given.source])
    decoded = tasks.decode(model, places)
    found |= {"steps": json.dumps(steps), "walk_source": decoded[given.source], "walk_target": decoded[given.target]}
    if given.label_key:
        for side, m in sides.items():
            middle = alignment.centres(z[m][given.rows("train", m)], given.labels("train", m))
            found[f"centres_{side}"] = tasks.decode(model, middle.loc[given.classes()].to_numpy())[given.target]
    shares = contributions(history)
    kept = {"shares": shares[shares["split"] == "train"], "accuracy": history[history["term"] == "accuracy"]}
    return found | {"history": json.dumps({k: v.to_dict("list") for k, v in kept.items()})}


def plan(
    given: Mapping[str, Scenario],
    names: Sequence[str],
    seeds: Sequence[int],
    studied: str,
    kl_shares: Sequence[float],
    align_shares: Sequence[float],
) -> list[dict]:
    """Settings of a sweep: every variant of `names` that a scenario can have, and the plain one of scenario `studied`
    under other shares of KL and alignment, each with every seed. Introduced in notebook 04.
    """
    possible = [(name, v) for name, g in given.items() for v in names if v in variants(g)]
    plain = [{"scenario": name, "variant": v, "seed": s} for name, v in possible for s in seeds]
    balance = [{"kl": kl, "align": align} for kl in kl_shares for align in align_shares]
    return plain + [{"scenario": studied, "variant": "X-modalix", "seed": s} | each for each in balance for s in seeds]


def compare(given: Scenario, results: Sequence[Mapping], how: Training) -> pd.DataFrame:
    """Scores of all methods on the scored test samples: method, kind (model, control or ceiling), seed, the scores of
    `scenarios.score`, and, for models, "own side", the R² over the mean of the target decoded from itself, and what
    `scenarios.aligned` says. `results`: those of `outcome`. Introduced in notebook 04.
    """
    read, rows = reader(given, most=2 * how.epochs), []
    for name, x_hat in baselines(given).items():
        rows.append({"method": name, "kind": "control"} | score(given, x_hat, read))
    for name, x_hat in ceilings(given, how).items():
        rows.append({"method": name, "kind": "ceiling"} | score(given, x_hat, read))
    for result in results:
        known = {"method": result["variant"], "kind": "model", "seed": result["seed"]}
        own = score(given, result["self"]).get("R2 over mean", np.nan) if given.paired else np.nan
        numbers = {k: v for k, v in result.items() if k in ("FOSCTTM", "label transfer", "modality accuracy")}
        rows.append(known | score(given, result["x_hat"], read) | {"own side": own} | numbers)
    if not given.paired and read is not None:
        y, x = given.labels("test", given.target), given.x(given.target, "test")
        truth = {f"{k} of {given.label_key}": v for k, v in read.scores(y, read.predict(x)).items()}
        rows.append({"method": "true pictures", "kind": "ceiling"} | truth)
    table = pd.DataFrame(rows).reindex(columns=list(dict.fromkeys([*COLUMNS, *(k for row in rows for k in row)])))
    return table.assign(seed=table["seed"].fillna(0).astype(int))


def kept(results: Sequence[Mapping], what: str) -> pd.DataFrame:
    """`shares` of the loss or the discriminator's `accuracy`, of several results. Introduced in notebook 04."""
    return pd.concat([pd.DataFrame(json.loads(r["history"])[what]).assign(seed=r["seed"]) for r in results])


# ---------------------------------------------------------------- what the notebook shows


def truth(given: Scenario) -> np.ndarray:
    """The measured target of the scored test samples [n, n_vars]. Introduced in notebook 04."""
    return given.samples[torch.from_numpy(scored_rows(given))].x[given.target].cpu().numpy()


def gallery(given: Scenario, results: Sequence[Mapping], names: Sequence[str]) -> tuple[dict, pd.Series, list[str]]:
    """Test pictures to lay side by side, in order: measured, from their own side, translated by the variants `names`,
    and by simple methods; their labels; and the names of the simple methods. Introduced in notebook 04.
    """
    one = {r["variant"]: r for r in results[::-1]}  # the first seed of each
    there = f"{given.source} → {given.target}"
    rows = {"measured": truth(given), f"{given.target} → {given.target}": one[names[0]]["self"]} if given.paired else {}
    rows |= {f"{there}\n{name}": one[name]["x_hat"] for name in names if name in one}
    shown = ("nearest neighbour", "ridge", "class mean")
    simple = {name: x for name, x in baselines(given).items() if name in shown}
    labels = given.about(scored_rows(given))
    order = np.argsort(labels.to_numpy(), kind="stable")
    return {k: x[order] for k, x in (rows | simple).items()}, labels.iloc[order], list(simple)


def centre_gallery(given: Scenario, result: Mapping) -> tuple[dict[str, np.ndarray], list[str]]:
    """Class centres decoded from either side, and the mean picture of each class; and the classes."""
    labels = given.labels("train", given.target)
    classes = given.classes()
    average = np.stack([given.x(given.target, "train")[labels == c].mean(0) for c in classes])
    sides = {
        f"{m} → {given.target}": result[f"centres_{s}"] for s, m in (("source", given.source), ("target", given.target))
    }
    return sides | {"mean picture": average}, classes


def meeting(given: Scenario, result: Mapping, plane: Callable) -> tuple[dict[str, np.ndarray], dict[str, pd.Series]]:
    """Latent means of both modalities in one plane, test samples only, and what is known of them.

    `plane(x [n, n_latent], train [n])` gives [n, 2], fitted on train. Introduced in notebook 04.
    """
    z = {given.source: result["z_source"], given.target: result["z_target"]}
    rows = {(m, s): given.rows(s, m) for m in z for s in ("train", "test")}
    train = np.concatenate([np.full(len(r), s == "train") for (_, s), r in rows.items()])
    flat = plane(np.vstack([z[m][r] for (m, _), r in rows.items()]), train)
    parts = dict(zip(rows, np.split(flat, np.cumsum([len(r) for r in rows.values()])[:-1]), strict=True))
    return {m: parts[m, "test"] for m in z}, {m: given.about(rows[m, "test"]) for m in z}


def certainty(given: Scenario, result: Mapping) -> dict[str, float]:
    """Whether samples that draws from the posterior disagree on are those that are told wrong: sd of draws and error,
    root mean squares per sample, and their rank correlation. Introduced in notebook 04.
    """
    error = np.sqrt(((truth(given) - result["x_hat"]) ** 2).mean(1))
    sd = np.sqrt((result["sd"] ** 2).mean(1))
    rank = pd.Series(sd).corr(pd.Series(error), "spearman")
    return {"sd of draws": sd.mean(), "error": error.mean(), "rank correlation": rank}


def profiles(
    given: Scenario, result: Mapping, how: Training, seed: int = 0
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Samples that have source and target (their obs), and what there is to predict their annotation from: the measured
    target, its translation, the latent position, a Varix of the target, and random features. Introduced in notebook 04.
    """
    rows = np.sort(np.concatenate([given.rows(s, given.source, given.target) for s in ("train", "valid", "test")]))
    x = given.samples[torch.from_numpy(rows)].x[given.target].cpu().numpy()
    some = np.random.default_rng(seed).choice(x.shape[1], min(how.n_latent, x.shape[1]), replace=False)
    methods = {f"measured {given.target}": x, f"{given.target} from {given.source}": result["x_all"][rows]}
    methods[f"latent from {given.source}"] = result["z_source"][rows]
    methods[f"Varix of {given.target}"] = alone(given, how, seed)[1][rows]
    return given.mdata.obs.iloc[rows], methods | {"random features": x[:, some]}


def balance_table(given: Scenario, results: Sequence[Mapping]) -> pd.DataFrame:
    """What the shares of KL and alignment do: a row per result with its scores. Introduced in notebook 04."""
    rows = []
    for r in results:
        own = score(given, r["self"])["R2 over mean"]
        found = {"KL": r["kl"], "alignment": r["align"], "seed": r["seed"], "FOSCTTM": r["FOSCTTM"]}
        rows.append(found | {"R² translated": score(given, r["x_hat"])["R2 over mean"], "R² own side": own})
    return pd.DataFrame(rows)
