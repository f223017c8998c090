"""One training loop. It knows epochs, batches and named loss terms, and nothing about omics.

A run with `checkpoint=` that is killed and started again ends bit-identical, on a CPU, to one never interrupted.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from helpers.balance import Balanced, Schedules, Shares, first_look, weighing, weighted
from helpers.batches import Samples, check_batch_size, epoch
from helpers.checkpoints import nested, random_states, read_checkpoint, set_random_states, under, write_checkpoint
from helpers.encoders import RowAdam
from helpers.likelihoods import check_support
from helpers.schedules import DECAYS, Curve
from helpers.wording import few

Record = Callable[[nn.Module, Samples], Mapping[str, float]]
Watch = Callable[[int, Mapping[str, Mapping[str, float]], bool], None]
EVALUATION_BATCH = 1024  # samples at a time where nothing is learnt: fewer, larger passes
SETTLED = 0.99  # a schedule counts as finished once it reaches this share of its last value


class TrainingDiverged(FloatingPointError):
    """A loss term became NaN or infinite. The model holds the last good weights, `history` the epochs before."""

    def __init__(self, message: str, history: pd.DataFrame):
        super().__init__(message)
        self.history = history


@dataclass(frozen=True)
class Settings:
    """How a model is trained; stored in every checkpoint and compared on resume. Introduced in notebook 01."""

    epochs: int
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 1e-3
    clip_norm: float | None = None
    patience: int | None = None
    precision: str = "fp32"
    compile: bool = False
    decay: str = "none"
    seed: int = 0

    def __post_init__(self):
        if self.decay not in DECAYS:
            raise ValueError(f"decay must be one of {', '.join(DECAYS)}, got {self.decay!r}")
        if self.epochs < 1 or self.lr <= 0:
            raise ValueError(f"need epochs >= 1 and lr > 0, got {self.epochs} and {self.lr}")
        if self.precision not in ("fp32", "tf32", "bf16"):
            raise ValueError(f"precision must be 'fp32', 'tf32' or 'bf16', got {self.precision!r}")


def fit(
    model: nn.Module,
    data: Samples | object,
    *,
    weights: Mapping[str, float | Curve] | Shares | None = None,
    optimiser: type[torch.optim.Optimizer] | Callable = RowAdam,
    device: str = "auto",
    record: Record | None = None,
    record_every: int = 1,
    watch: Watch | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 10,
    progress: bool | None = None,
    **settings,
) -> pd.DataFrame:
    """Train on the "train" split, watch the "valid" split, and return a tidy history (epoch, split, term, value).

    Parameters
    ----------
    model : anything with `losses(batch, generator) -> {term: scalar}`; moved to the device, left in eval mode. It may
        have `check(samples)`, which raises `ValueError` on data that cannot train it, `parameter_groups(lr)`, a list
        of dicts for the optimiser, and `floors(batch) -> {term: scalar}` for `balance.Shares`.
    data : a MuData, or `Samples` where several models share one data set.
    weights : term, or its part before "/", -> number or schedule (`schedules.scaled(beta, "logistic-mid")`);
        1 where not named. The history holds unweighted terms, `weight/<term>` and the weighted `total`. On the
        valid split, `total` uses the weights of the last epoch, so that epochs compare. Or `balance.Shares`: wanted
        shares of the loss, from which weights are found; the history then holds `floor/<term>` at epoch 0.
    optimiser : called as `optimiser(parameters, lr=…, weight_decay=…, fused=True)`; AdamW, which knows tables of codes
        too. Codes of valid samples (`LearnedCodes`) are learned while the split is watched, with all else fixed.
    record, record_every : numbers to add to the history every so many epochs, `record(model, samples)`.
    watch : told after every epoch, `watch(epoch, {split: {term: value}}, settled)`: settled once all weights have
        reached their last value. What it raises ends the training.
    checkpoint, checkpoint_every : file to write every so many epochs and to resume from where it exists.
    progress : one progress bar; by default in interactive use only.
    **settings : fields of `Settings`: epochs, batch_size, lr, weight_decay, clip_norm, patience (epochs without a
        better valid total, counted once all weights have settled; the best weights are restored), precision
        ("fp32", "tf32", "bf16"), compile, decay (of the learning rate over the epochs: "none" or "cosine"), seed.

    Raises `TrainingDiverged` on NaN (the last good weights are kept), `ValueError` on unknown settings, unknown
    weights, data outside a likelihood's support, fewer than two training samples, or a checkpoint of another run.
    Introduced in notebook 01.
    """
    unknown = set(settings) - set(Settings.__dataclass_fields__)
    if unknown:
        raise ValueError(f"unknown settings {sorted(unknown)}; choose from {list(Settings.__dataclass_fields__)}")
    chosen, path = Settings(**settings), None if checkpoint is None else Path(checkpoint)
    samples = data if isinstance(data, Samples) else Samples(data, device)
    check_batch_size(len(samples.rows("train")), chosen.batch_size)
    check_support(model, samples)
    if hasattr(model, "check"):
        model.check(samples)
    if hasattr(model, "learn_names"):
        model.learn_names(samples)
    with seeded(chosen.seed, samples.device), matmul_precision(chosen.precision):
        run = Run(model, samples, chosen, weighing(weights, chosen.epochs), optimiser)
        run.begin(path)
        for _ in bar(run.epoch, chosen.epochs, progress, run):
            if run.finished:
                break
            terms = run.one_epoch(record if (run.epoch + 1) % record_every == 0 else None)
            if watch is not None:
                watch(run.epoch, terms, run.settled_at is not None)
            if path is not None and (run.finished or run.epoch % checkpoint_every == 0):
                run.save(path)
        run.use_best()
        run.weights.end()
    return run.table()


@dataclass
class Best:
    """The weights to fall back on: the best once weights have settled, the newest good ones before."""

    state: dict[str, Tensor]
    score: float = float("inf")
    epoch: int = 0

    def keep(self, model: nn.Module, score: float, at: int) -> None:
        for name, value in model.state_dict().items():
            self.state[name].copy_(value)
        self.score, self.epoch = score, at


@dataclass
class Run:
    """The state of one training run between two epochs."""

    model: nn.Module
    samples: Samples
    settings: Settings
    weights: Schedules | Balanced
    make_optimiser: Callable
    epoch: int = 0
    settled_at: int | None = None  # epoch after which scores compare
    rows: list[tuple] = field(default_factory=list)

    def __post_init__(self):
        s, device = self.settings, self.samples.device
        self.model.to(device)
        self.parameters, groups = list(self.model.parameters()), parameter_groups(self.model, s.lr)
        self.optimiser = self.make_optimiser(groups, lr=s.lr, weight_decay=s.weight_decay, fused=True)
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        sparse = [m for m in self.model.modules() if isinstance(m, nn.Embedding) and m.sparse]
        self.codes = [m.weight for m in sparse if m.weight.requires_grad]  # of samples: held-out ones have theirs too
        self.shuffle = torch.Generator().manual_seed(s.seed)
        self.noise = torch.Generator(device).manual_seed(s.seed + 1)
        self.generators = {"shuffle": self.shuffle, "noise": self.noise}
        self.train, self.valid = self.samples.rows("train"), self.samples.rows("valid")
        self.losses = torch.compile(self.model.losses) if s.compile else self.model.losses
        self.best = Best(copy.deepcopy(self.model.state_dict()))

    # -- before the first epoch --------------------------------------------------------------------------------

    def begin(self, path: Path | None) -> None:
        """Continue from a checkpoint where there is one; else set the first weights."""
        if path is not None and path.exists():
            self.restore(path)
        else:
            self.rows += [(0, "train", f"floor/{term}", v) for term, v in self.weights.begin(self.look).items()]

    def look(self) -> tuple[dict[str, float], dict[str, float]]:
        """Loss terms and floors of the untrained model; leaves no trace in the run."""
        with seeded(self.settings.seed, self.samples.device), self.autocast():
            terms, floors = first_look(self.model, self.samples, self.noise, self.settings.seed)
        self.model.load_state_dict(self.best.state)  # batch-norm statistics and running means
        self.check_finite({"train": terms | {f"floor/{term}": v for term, v in floors.items()}})
        return terms, floors

    # -- one epoch ---------------------------------------------------------------------------------------------

    def one_epoch(self, record: Record | None) -> dict[str, dict[str, float]]:
        """Train, evaluate, log and judge; raises `TrainingDiverged` with the last good weights restored."""
        t, now, last = self.epoch, self.weights.at(self.epoch), self.weights.last()
        for group, lr in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = lr * DECAYS[self.settings.decay](t, self.settings.epochs)
        terms = {"train": self.pass_over(self.train, now, train=True)}
        if len(self.valid):
            terms["valid"] = self.pass_over(self.valid, last, train=False)
        self.check_finite(terms)
        self.weights.observe(t, terms["train"])
        self.epoch += 1
        for split, values in terms.items():
            self.rows += [(self.epoch, split, term, value) for term, value in values.items()]
        self.rows += [(self.epoch, "train", f"weight/{k}", w) for k, w in now.items()]
        self.judge(terms.get("valid", {}).get("total"), settled=t >= self.weights.fixed_from and has_settled(now, last))
        if record is not None:
            with torch.no_grad(), torch.random.fork_rng():
                self.rows += [
                    (self.epoch, "valid", k, float(v)) for k, v in record(self.model.eval(), self.samples).items()
                ]
        return terms

    def pass_over(self, rows: Tensor, weights: Mapping[str, float], train: bool) -> dict[str, float]:
        """Mean of every term over the samples of a split, and their weighted total; trains where asked to."""
        self.model.train(train)
        noise = self.noise if train else torch.Generator(self.samples.device).manual_seed(self.settings.seed)
        large = self.settings.batch_size if train or self.codes else EVALUATION_BATCH
        batch_size = max(self.settings.batch_size, large)
        sums: Tensor | int = 0
        with torch.set_grad_enabled(train or bool(self.codes)), self.only(None if train else self.codes):
            for index in epoch(rows, batch_size, self.shuffle if train else None):
                with self.autocast():
                    terms = self.losses(self.samples[index], noise)
                    total = weighted(terms, weights)
                if train or self.codes:
                    self.step(total)
                sums = sums + torch.stack([v.detach().float() for v in (*terms.values(), total)]) * len(index)
        means = (sums / len(rows)).tolist()  # the only wait for the device in an epoch
        return dict(zip([*terms, "total"], means, strict=True))

    @contextlib.contextmanager
    def only(self, learning: list[Tensor] | None) -> Iterator[None]:
        """Let nothing but these parameters learn (None: all), and compute no other slopes."""
        fixed = [p for p in self.parameters if p.requires_grad] if learning is not None else []
        kept = {id(p) for p in learning or ()}
        fixed = [p.requires_grad_(False) for p in fixed if id(p) not in kept]
        try:
            yield
        finally:
            for p in fixed:
                p.requires_grad_(True)

    def step(self, total: Tensor) -> None:
        if not total.requires_grad:  # nothing that the model reads was measured in this batch
            return
        for parameter in self.parameters:
            parameter.grad = None
        total.backward()
        if self.settings.clip_norm is not None:
            dense = [p for p in self.parameters if p.grad is None or not p.grad.is_sparse]  # rows have Adam's own scale
            nn.utils.clip_grad_norm_(dense, self.settings.clip_norm)
        self.optimiser.step()

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.settings.precision != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.samples.device.type, torch.bfloat16)

    def check_finite(self, terms: Mapping[str, Mapping[str, float]]) -> None:
        bad = [
            f"{term} ({split})" for split, ts in terms.items() for term, v in ts.items() if not abs(v) < float("inf")
        ]
        if bad:
            self.model.load_state_dict(self.best.state)
            self.model.eval()
            raise TrainingDiverged(
                f"epoch {self.epoch + 1}: {', '.join(bad)} is no longer finite; the weights of epoch {self.best.epoch} "
                f"are restored. Lower lr (now {self.settings.lr}), set clip_norm, or check the scale of the data",
                self.table(),
            )

    def judge(self, score: float | None, settled: bool) -> None:
        if settled and self.settled_at is None:
            self.settled_at, self.best.score = self.epoch, float("inf")
        newest_counts = self.settings.patience is None or not settled or score is None
        if newest_counts or score < self.best.score:
            self.best.keep(self.model, float("inf") if score is None else score, self.epoch)

    @property
    def finished(self) -> bool:
        if self.epoch >= self.settings.epochs:
            return True
        patience = self.settings.patience
        return patience is not None and self.settled_at is not None and self.epoch - self.best.epoch >= patience

    def use_best(self) -> None:
        self.model.load_state_dict(self.best.state)
        self.model.eval()

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=["epoch", "split", "term", "value"])

    # -- checkpoints -------------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """What must agree for a checkpoint to be this run's: settings, schedules, network, training rows."""
        network = [(name, list(value.shape)) for name, value in self.model.state_dict().items()]
        names = "\n".join(self.samples.obs_names[self.train.cpu().numpy()])
        agreed = [asdict(self.settings), network, self.weights.plan(), names]
        return hashlib.sha256(json.dumps(agreed).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Weights, optimiser, random states and history in one safetensors file with a JSON header; atomic."""
        slots = self.optimiser.state_dict()["state"]
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in self.best.state.items()}
        tensors |= {f"optimiser/{i}/{k}": v for i, slot in slots.items() for k, v in slot.items()}
        tensors |= {f"random/{k}": v for k, v in random_states(self.generators, self.samples.device).items()}
        header = {
            "fingerprint": self.fingerprint(),
            "settings": asdict(self.settings),
            "best": {"score": self.best.score, "epoch": self.best.epoch},
            "epoch": self.epoch,
            "settled_at": self.settled_at,
            "rows": self.rows,
            "weights": self.weights.state(),
        }
        write_checkpoint(path, header, tensors)

    def restore(self, path: Path) -> None:
        """Continue where `save` left off; raises `ValueError` where the file is damaged or of another run."""
        header, tensors = read_checkpoint(path)
        if header["fingerprint"] != self.fingerprint():
            raise ValueError(
                f"checkpoint {path} belongs to a run with other settings, data or network "
                f"({header['settings']}): give the same ones, or another file"
            )
        self.model.load_state_dict(under("model", tensors))
        state = self.optimiser.state_dict()
        state["state"] = nested(under("optimiser", tensors))
        self.optimiser.load_state_dict(state)
        set_random_states(under("random", tensors), self.generators, self.samples.device)
        best = {k: v.to(self.samples.device) for k, v in under("best", tensors).items()}
        self.best = Best(best, **header["best"])
        self.epoch, self.settled_at = header["epoch"], header["settled_at"]
        self.rows = [tuple(row) for row in header["rows"]]
        self.weights.restore(header.get("weights", {}))  # files of fixed weights were once written without


def has_settled(now: Mapping[str, float], last: Mapping[str, float]) -> bool:
    """Whether every weight has come to within 1 % of its last value."""
    return all(abs(now[k] - last[k]) <= (1 - SETTLED) * abs(last[k]) for k in last)


def parameter_groups(model: nn.Module, lr: float) -> list:
    """What to hand to the optimiser: the model's own groups where it has some, else its parameters.

    Raises `ValueError` where a parameter is in no group, since it would silently stay as it is.
    """
    if not hasattr(model, "parameter_groups"):
        return list(model.parameters())
    groups = model.parameter_groups(lr)
    given = {id(p) for group in groups for p in group["params"]}
    if forgotten := [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in given]:
        raise ValueError(f"model.parameter_groups leaves out {few(forgotten)}: they would never be trained")
    return groups


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run under a seed of one's own and give the global random state back afterwards (dropout draws from it)."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Allow TF32 matrix products inside the block where asked for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def bar(start: int, epochs: int, progress: bool | None, run: Run) -> Iterator[int]:
    """Epoch numbers behind one progress bar that shows the latest totals."""
    from tqdm.auto import tqdm

    shown = "WORKBOOK_RUN_DIR" not in os.environ if progress is None else progress
    with tqdm(
        range(start, epochs), initial=start, total=epochs, disable=not shown, leave=False, unit="epoch"
    ) as epochs_bar:
        for number in epochs_bar:
            yield number
            totals = [(split, f"{v:.4g}") for _, split, term, v in run.rows[-64:] if term == "total"]
            epochs_bar.set_postfix(dict(totals[-2:]), refresh=False)
