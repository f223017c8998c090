"""Studies: the same seed gives the same trials, through kills; several processes share one; errors are clear."""

import functools
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from types import SimpleNamespace

import matplotlib
import numpy as np
import optuna
import pandas as pd
import pytest
import torch

matplotlib.use("agg")
import conftest
from matplotlib import pyplot as plt

from helpers import models, schedules, studies, study_plots, training, tuning
from helpers.batches import Samples

ANNEALED = {"kl": schedules.scaled(0.1, "logistic-mid")}
SPACE = {"lr": ("log", 1e-4, 1e-1), "dropout": ("uniform", 0.0, 0.5), "n_layers": ("int", 1, 2)}
pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage")  # trials asked for by hand
OPTIONS = dict(epochs=3, batch_size=64, weights=ANNEALED, progress=False)


def small(n_vars, n_layers=1, dropout=0.1):
    return models.varix(n_vars, 2, n_layers, 4.0, dropout)


@pytest.fixture
def samples(two_modalities):
    return Samples(two_modalities, "cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study of twelve trials that nothing disturbed: past the ten random ones, so that TPE has its say."""
    samples = Samples(conftest.two_modalities.__wrapped__(), "cpu")
    return search(samples, tmp_path_factory.mktemp("whole") / "t.db", 12)


def search(samples, storage, n_trials=4, recipe=small, space=SPACE, **options):
    return tuning.tune(recipe, samples, space, n_trials, storage, **OPTIONS | options)


def tried(tuned, n=None):
    """Hyperparameters, values and states of all trials but those that were lost, in order."""
    trials = tuned.trials[tuned.trials.state != "failed"][:n]
    return trials.drop(columns=["number", "seconds"]).reset_index(drop=True)


def trials_in(path, name="small"):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{path}").get_trials()


SCRIPT = """
import functools, os, signal, sys
sys.path.insert(0, {tests!r})
import conftest, test_tuning
from helpers.batches import Samples
path, die_at, n_trials = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
samples = Samples(conftest.two_modalities.__wrapped__(), "cpu")
made = [0]
@functools.wraps(test_tuning.small)
def mortal(n_vars, **given):
    made[0] += 1
    model, batches = test_tuning.small(n_vars, **given), [0]
    honest = model.losses
    def losses(batch, generator=None):
        batches[0] += 1
        if made[0] == die_at and batches[0] == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(batch, generator)
    model.losses = losses
    return model
test_tuning.search(samples, path, n_trials, mortal)
"""


def start_script(path, die_at, n_trials):
    code = SCRIPT.format(tests=os.path.dirname(__file__))
    command = [sys.executable, "-c", code, str(path), str(die_at), str(n_trials)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module", autouse=True)
def processes(tmp_path_factory):
    """Begun first and looked at last: one process that is killed, and two on one study that share a file."""
    folder = tmp_path_factory.mktemp("processes")
    killed = start_script(folder / "killed.db", die_at=3, n_trials=12)
    pair = [start_script(folder / "shared.db", die_at=-1, n_trials=16) for _ in range(2)]
    yield SimpleNamespace(folder=folder, killed=killed, pair=pair)
    for process in (killed, *pair):
        process.kill()
        process.communicate()


# ---------------------------------------------------------------- what a trial is worth


def test_the_value_counts_the_kl_at_its_full_weight(samples, tmp_path):
    """Built and fitted by hand with what was found, the total at the last weights is the study's value."""
    found = search(samples, tmp_path / "t.db", n_trials=3, epochs=8)
    assert found.value == found.trials.value.min()
    assert set(found.settings) == {"lr"} and set(found.model) == {"dropout", "n_layers"}
    with training.seeded(0, samples.device):
        model = small(samples.n_vars, **found.model)
    training.fit(model, samples, epochs=8, batch_size=64, weights=ANNEALED, **found.settings)
    with torch.no_grad():
        terms = model.losses(samples[samples.rows("valid")], torch.Generator().manual_seed(0))
    full = ANNEALED["kl"](7, 8)
    assert full > 0.099 and ANNEALED["kl"](0, 8) < 1e-5
    total = terms["nll/rna"] + terms["nll/protein"] + full * terms["kl"]
    assert found.value == pytest.approx(total.item(), rel=1e-5)


def test_with_patience_the_best_epoch_counts(samples, tmp_path):
    space = {"lr": ("uniform", 0.02, 0.02)}
    options = {"epochs": 300, "batch_size": 32, "weights": {"kl": 0.01}, "patience": 5, "seed": 3}
    found = search(samples, tmp_path / "t.db", 1, space=space, **options)
    with training.seeded(3, samples.device):
        model = small(samples.n_vars)
    history = training.fit(model, samples, lr=0.02, **options)
    valid = history.query("split == 'valid' and term == 'total'").value
    assert len(valid) < 300 and valid.iloc[-1] > valid.min()
    assert found.value == pytest.approx(valid.min()) and found.trials.epochs.tolist() == [len(valid)]


def test_a_planted_optimum_is_found(samples, tmp_path):
    """Of learning rates from useless to good, and of layers that change little, the search finds a good rate."""
    space = {"lr": ("log", 1e-6, 3e-2), "n_layers": ("int", 1, 2)}
    found = search(samples, tmp_path / "t.db", 14, space=space, epochs=5, batch_size=32)
    assert found.params["lr"] > 2e-3
    late = found.trials.lr[10:]
    assert np.log10(late).mean() > np.log10(found.trials.lr[:10]).mean() + 0.5


# ---------------------------------------------------------------- the same seed, through resumes


def test_the_same_seed_gives_the_same_trials(samples, tmp_path, whole):
    torch.manual_seed(5)
    same, drawn = search(samples, tmp_path / "a.db"), torch.rand(1)
    pd.testing.assert_frame_equal(tried(same), tried(whole, 4), check_exact=True)
    other = search(samples, tmp_path / "b.db", 2, seed=1)
    assert set(other.trials.lr).isdisjoint(whole.trials.lr) and whole.trials.lr.nunique() == 12
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1)), "the global random state is given back"


def test_n_trials_is_a_total(samples, tmp_path, whole):
    """Twelve in one call, or six and six; asked for again, nothing happens."""
    path = tmp_path / "parts.db"
    search(samples, path, 6)
    parts = search(samples, path, 12)
    pd.testing.assert_frame_equal(tried(whole), tried(parts), check_exact=True)
    again = search(samples, path, 12)
    pd.testing.assert_frame_equal(again.trials, parts.trials, check_exact=True)
    assert again.params == parts.params and len(search(samples, path, 3).trials) == 12


# ---------------------------------------------------------------- trials that are lost


def study_at(path, n_running=1, worker=("elsewhere", 1)):
    """A study with one trial in the works, signed by a process."""
    url = studies.database(path)
    with studies.opened(path, "s", {}, 0) as (study, _):
        for _ in range(n_running):
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            if worker:
                trial.set_user_attr("worker", list(worker))
    return url, trial


def objective(trial):
    return trial.suggest_float("x", 0, 1)


def test_a_silent_trial_of_another_machine_is_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "HEARTBEAT", 1)
    monkeypatch.setattr(studies, "GRACE", 1)
    path = tmp_path / "s.db"
    _, begun = study_at(path)
    with studies.opened(path, "s", {}, 0) as (study, _):
        study._storage.record_heartbeat(begun._trial_id)
        studies.take_back(study, {})
        assert study.trials[0].state.name == "RUNNING", "a sign of life keeps it"
        studies.work_on(study, objective, 2, 0)
        assert [t.state.name for t in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
        assert study.trials[2].params == begun.params and study.trials[2].user_attrs["repeats"] == 0


def test_a_trial_that_was_never_signed_is_lost_after_a_while(tmp_path, monkeypatch):
    path = tmp_path / "s.db"
    study_at(path, worker=None)
    with studies.opened(path, "s", {}, 0) as (study, _):
        seen = {}
        studies.take_back(study, seen)
        assert study.trials[0].state.name == "RUNNING" and list(seen) == [0]
        monkeypatch.setattr(studies, "GRACE", 0)
        studies.take_back(study, seen)
        assert [t.state.name for t in study.trials] == ["FAIL", "WAITING"]


def test_a_trial_lost_twice_is_given_up(tmp_path):
    """What kills its process, for want of memory, is not tried for ever."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path = tmp_path / "s.db"
    study_at(path, worker=(studies.worker()[0], dead.pid))
    with studies.opened(path, "s", {}, 0) as (study, _):
        studies.take_back(study, {})
        again = study.ask()
        again.set_user_attr("worker", [studies.worker()[0], dead.pid])
        studies.take_back(study, {})
        assert [t.state.name for t in study.trials] == ["FAIL", "FAIL"]
        studies.work_on(study, objective, 2, 0)
        assert [t.state.name for t in study.trials] == ["FAIL", "FAIL", "COMPLETE"]


def test_a_trial_taken_over_in_its_sleep_is_let_go(tmp_path):
    def slow(trial):
        trial.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # as another process would
        trial.report(1.0, 1)
        return 1.0

    with studies.opened(tmp_path / "s.db", "s", {}, 0) as (study, _):
        studies.run_one(study, studies.Placed(slow, 1, 0))
        assert [t.state.name for t in study.trials] == ["FAIL"]


def test_places_are_unique_through_repetitions_and_surplus(tmp_path):
    with studies.opened(tmp_path / "s.db", "s", {}, 0) as (study, _):
        trials = [study.ask() for _ in range(3)]
        trials[1].set_user_attr("surplus", True)
        studies.do_again(study, trials[0], lost=True)
        again = study.ask()
        after = study.ask()
        places = [studies.place_of(t, study.trials) for t in (trials[0], trials[2], again, after)]
        assert again.user_attrs == {"repeats": 0, "lost": 1} and places == [0, 1, 0, 2]
        studies.run_one(study, studies.Placed(objective, 3, 0))  # a fourth place where three were wanted
        assert study.trials[-1].user_attrs["surplus"] and study.trials[-1].state.name == "FAIL"


def test_a_lost_trial_that_was_queued_twice_at_once_is_done_once(tmp_path):
    with studies.opened(tmp_path / "s.db", "s", {}, 0) as (study, _):
        first = study.ask()
        first.suggest_float("x", 0, 1)
        study.tell(first, state=optuna.trial.TrialState.FAIL)
        for _ in range(2):
            studies.do_again(study, first, lost=True)
        studies.work_on(study, objective, 2, 0)
        assert [t.state.name for t in study.trials] == ["FAIL", "COMPLETE", "FAIL", "COMPLETE"]
        assert ["surplus" in t.user_attrs for t in study.trials] == [False, False, True, False]


def test_an_error_of_the_recipe_passes_on_and_its_trial_is_done_again(samples, tmp_path, whole):
    calls = [0]

    @functools.wraps(small)
    def faulty(n_vars, **given):
        calls[0] += 1
        if calls[0] in (2, 3):
            raise (KeyError("a mistake"), KeyboardInterrupt())[calls[0] - 2]
        return small(n_vars, **given)

    path = tmp_path / "t.db"
    for kind in (KeyError, KeyboardInterrupt):
        with pytest.raises(kind):
            search(samples, path, recipe=faulty)
    found = search(samples, path, recipe=faulty)
    assert found.trials.state.tolist() == ["complete", "failed", "failed", "complete", "complete", "complete"]
    pd.testing.assert_frame_equal(tried(found), tried(whole, 4), check_exact=True)


# ---------------------------------------------------------------- pruning


def test_bad_trials_are_pruned_but_only_once_schedules_have_settled(samples, tmp_path):
    """Planted: a learning rate that learns nothing. What is reported, and pruned, comes after the annealing."""
    space = {"lr": ("choice", 1e-6, 2e-2), "dropout": ("uniform", 0.0, 0.1)}
    found = search(samples, tmp_path / "t.db", 14, space=space, epochs=12, batch_size=32)
    pruned = found.trials[found.trials.state == "pruned"]
    settled = next(t + 1 for t in range(12) if training.has_settled({"kl": ANNEALED["kl"](t, 12)}, {"kl": 0.1}))
    assert 8 < settled < 12
    assert len(pruned) and (pruned.lr == 1e-6).all() and (pruned.epochs >= settled).all() and (pruned.epochs < 12).all()
    assert (found.trials.state[:5] == "complete").all(), "the first five set the standard"
    steps = {step for t in trials_in(tmp_path / "t.db") for step in t.intermediate_values}
    assert steps == set(range(settled, 12))
    assert found.params["lr"] == 2e-2


def test_long_trainings_report_fifty_times_at_most():
    steps, totals = [], []
    listener = SimpleNamespace(report=lambda value, step: steps.append(step), should_prune=lambda: False)
    watch = tuning.watcher(listener, totals, 1000)
    for epoch in range(1, 1001):
        watch(epoch, {"valid": {"total": 1.0}}, settled=epoch > 700)
    assert steps == list(range(720, 1000, 20)) and len(totals) == 300


def poisonous(n_vars, poison=False, dropout=0.1):
    model = small(n_vars, dropout=dropout)
    if poison:
        model.losses = lambda batch, generator=None: {"nll": 0 * next(model.parameters()).sum() + float("nan")}
    return model


def test_a_trial_that_diverges_does_not_end_the_study(samples, tmp_path):
    space = {"poison": ("choice", True, False), "dropout": ("uniform", 0.0, 0.5)}
    found = search(samples, tmp_path / "t.db", 8, poisonous, space, weights=None)
    states = found.trials.groupby("poison").state.unique()
    assert list(states[True]) == ["diverged"] and "diverged" not in states[False] and len(found.trials) == 8
    with pytest.raises(RuntimeError, match=r"no trial of study 'all' is complete \(2 diverged\); the first: .*finite"):
        search(samples, tmp_path / "t.db", 2, poisonous, {"poison": ("choice", True)}, weights=None, name="all")


def test_a_trial_too_large_for_the_gpu_does_not_end_the_study(samples, tmp_path):
    def huge(n_vars, dropout, large=False):
        if large:
            raise torch.OutOfMemoryError("out of memory")
        return small(n_vars, dropout=dropout)

    space = {"large": ("choice", True, False), "dropout": ("uniform", 0.0, 0.5)}
    states = search(samples, tmp_path / "t.db", 6, huge, space).trials.groupby("large").state.unique()
    assert list(states[True]) == ["diverged"] and "complete" in states[False]


def test_time_is_up(samples, tmp_path):
    with pytest.raises(RuntimeError, match=r"no trial of study 'small' is complete \(none has begun\)"):
        search(samples, tmp_path / "t.db", timeout=0)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "the space is empty"),
        ({"lr": ("logg", 1, 2)}, r"range of 'lr'.* begin with one of .*; did you mean 'log'\?"),
        ({"lr": ()}, "must begin with one of"),
        ({"lr": ("log", 0, 1)}, "a logarithmic range begins above 0"),
        ({"lr": ("uniform", 1.0, 0.5)}, "give two numbers, low <= high"),
        ({"lr": ("uniform", 1.0)}, "give two numbers"),
        ({"n_layers": ("int", 1, 2.5)}, "give two whole numbers"),
        ({"n_layers": ("choice",)}, "to choose from"),
        ({"n_layers": ("choice", [1])}, "to choose from"),
        ({"droput": ("uniform", 0, 0.5)}, r"'droput', which is neither an argument of small .*mean 'dropout'\?"),
        ({"n_vars": ("int", 1, 2)}, "'n_vars', which is neither"),
        ({"epochs": ("int", 1, 2)}, "'epochs' cannot be tuned, since trials would not compare"),
        ({"batch_size": ("choice", 32, 64)}, "'batch_size' both given and in the space"),
    ],
)
def test_bad_spaces_are_named(samples, tmp_path, space, message):
    with pytest.raises(ValueError, match=message):
        search(samples, tmp_path / "t.db", space=space)
    assert not (tmp_path / "t.db").exists()


def test_other_bad_input_is_named(samples, two_modalities, tmp_path):
    path = tmp_path / "t.db"
    with pytest.raises(ValueError, match=r"'dropout' is in the space, and bound to 0\.2 in the recipe"):
        search(samples, path, recipe=functools.partial(small, dropout=0.2))
    with pytest.raises(ValueError, match=r"unknown settings 'patince'; did you mean 'patience'\?"):
        search(samples, path, patince=3)
    with pytest.raises(ValueError, match="epochs >= 1"):
        search(samples, path, epochs=0)
    with pytest.raises(ValueError, match="n_trials must be at least 1, got 0"):
        search(samples, path, 0)
    two_modalities.obs["split"] = "train"
    with pytest.raises(ValueError, match="needs samples in the valid split and finds none"):
        search(two_modalities, path, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_study_made_with_something_else_is_refused(samples, two_modalities, tmp_path):
    path = tmp_path / "t.db"
    search(samples, path, 1)

    def refused(message, data=samples, recipe=small, **options):
        with pytest.raises(ValueError, match="(?s)study 'small' in .*t.db was made with other " + message + ".*name="):
            search(data, path, 1, recipe, **options)

    refused(r"space of lr \(log 0.0001 0.1 there, log 0.0001 0.2 here\)", space=SPACE | {"lr": ("log", 1e-4, 0.2)})
    refused(r"space of dropout \(uniform 0.0 0.5 there, nothing here\)", space={"lr": SPACE["lr"]})
    refused(r"setting epochs \(3 there, 4 here\)", epochs=4)
    refused(r"weight of kl \(0.09\d*, annealed \(\w{8}\) there, 0.5 here\)", weights={"kl": 0.5})
    refused(
        r"recipe \(small there, small\(n_latent=3\) here\)", recipe=functools.partial(vary, n_latent=3), name="small"
    )
    refused(r"setting seed \(0 there, 1 here\)", seed=1)
    two_modalities["rna"].X[0, 0] += 1000
    refused(r"modality rna \(200 x 30, mean size", data=Samples(two_modalities, "cpu"))
    two_modalities.obs.loc["s0", "split"] = "test" if two_modalities.obs.loc["s0", "split"] != "test" else "train"
    refused("samples", data=Samples(two_modalities, "cpu"))
    assert len(search(samples, path, 1, name="other", epochs=4).trials) == 1, "another name, another study"


def vary(n_vars, n_latent=2, **given):
    return models.varix(n_vars, n_latent, **given)


vary.__name__ = "small"


def test_a_study_whose_first_trial_failed_can_be_corrected(samples, tmp_path):
    """A wrong weight shows in the first trial only; that must not bind the study to it."""
    with pytest.raises(ValueError, match=r"weights for \['kll'\]"):
        search(samples, tmp_path / "t.db", weights={"kll": 1.0})
    assert search(samples, tmp_path / "t.db").trials.state.tolist() == ["complete"] * 4


def test_a_study_of_another_program_is_refused(samples, tmp_path):
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/t.db", study_name="small")
    study.optimize(objective, n_trials=1)
    with pytest.raises(ValueError, match=r"was made with other .*nothing there"):
        search(samples, tmp_path / "t.db")


def test_a_locked_file_is_one_clear_error(samples, tmp_path, monkeypatch):
    path = tmp_path / "t.db"
    search(samples, path, 1)
    monkeypatch.setattr(studies, "LOCK_SECONDS", 0.1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(OSError, match=r"file .*t.db stayed locked for 0.1 s: close .* or give another file"):
        search(samples, path, 2)
    other.execute("ROLLBACK")
    assert len(search(samples, path, 2).trials) == 2


def test_a_lock_that_ends_is_waited_for(samples, tmp_path):
    path = tmp_path / "t.db"
    search(samples, path, 1)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(0.5, other.execute, ["ROLLBACK"])
    timer.start()
    assert len(search(samples, path, 2).trials) == 2
    timer.join()


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("nosuch://x/y", "storage nosuch://x/y cannot be used .*postgresql"),
        ("postgresql+nosuch://me:secret@host/db", r"storage postgresql\+nosuch://me:\*\*\*@host/db cannot be used"),
        ("http//://", "cannot be used"),
        ("sqlite://", "a study in memory could be neither resumed nor shared"),
        ("sqlite:///:memory:", "a study in memory"),
    ],
)
def test_urls_that_lead_nowhere(samples, storage, message):
    with pytest.raises(ValueError, match=message):
        search(samples, storage)


def test_files_that_are_no_studies(samples, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="is a folder: name a file in it"):
        search(samples, tmp_path)
    (tmp_path / "t.txt").write_text("no database " * 100)
    with pytest.raises(ValueError, match=r"t.txt is no SQLite database, or damaged"):
        search(samples, tmp_path / "t.txt")
    with pytest.raises(OSError, match="a part of this path is a file"):
        search(samples, tmp_path / "t.txt" / "t.db")
    with pytest.raises(OSError, match=r"storage .*none/t.db cannot be used: unable to open"):
        search(samples, f"sqlite:///{tmp_path}/none/t.db")
    monkeypatch.setenv("WORKBOOK_RUN_DIR", str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"cleared before the next: give run.kept / 'tuning.db'"):
        search(samples, tmp_path / "run" / "t.db")


def test_the_default_file_lies_beside_the_run(samples, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_RUN_DIR", str(tmp_path / "02_x"))
    found = search(samples, None, 1)
    assert found.storage == str(tmp_path / ".02_x.kept" / "tuning.db") and os.path.exists(found.storage)


def test_odd_paths_and_urls_are_the_same_study(samples, tmp_path):
    path = tmp_path / "ä b{c}#%?" / "t.db"
    a = search(samples, path, 1)
    assert path.exists() and a.storage == str(path)
    b = search(samples, studies.database(path), 1)
    pd.testing.assert_frame_equal(a.trials, b.trials)


def test_optuna_keeps_quiet_and_its_setting(samples, tmp_path, capfd, recwarn):
    before = optuna.logging.get_verbosity()
    search(samples, tmp_path / "t.db", 2)
    captured = capfd.readouterr()
    assert captured.out == captured.err == "" and optuna.logging.get_verbosity() == before
    assert not [w for w in recwarn if issubclass(w.category, optuna.exceptions.ExperimentalWarning)]


def test_one_bar_over_trials(samples, tmp_path, capfd):
    search(samples, tmp_path / "t.db", 2, progress=True)
    text = capfd.readouterr().err
    assert "2/2" in text and "best=" in text and "epoch" not in text


def test_descriptions_hold_no_addresses():
    recipe = functools.partial(models.varix, n_latent=2, heads={"rna": torch.nn.Linear}, penalty=np.ones((2, 3)))
    assert tuning.describe(recipe) == "varix(heads={rna: Linear}, n_latent=2, penalty=ndarray[2, 3])"
    assert tuning.describe((1, "a", object())) == "(1, 'a', object)"
    assert tuning.summary(0.5, 10) == "0.5" and tuning.summary(ANNEALED["kl"], 9) != tuning.summary(ANNEALED["kl"], 10)


def test_the_published_space_suits_the_recipe(samples):
    tuning.check_space(models.varix, tuning.SPACE, {})
    trial = optuna.create_study().ask()
    params = tuning.propose(trial, tuning.SPACE)
    assert list(params) == ["lr", "weight_decay", "dropout", "factor", "n_layers"]
    assert trial.distributions["lr"].log and trial.distributions["weight_decay"].log
    assert models.varix(samples.n_vars, 2, **tuning.divided(params)[1])


# ---------------------------------------------------------------- importances and pictures


@pytest.fixture
def planted():
    """Sixty trials whose loss is made by lr, a little by n_layers, and not by kind; some were pruned."""
    rng = np.random.default_rng(0)
    space = {"lr": ("log", 1e-4, 1e-1), "n_layers": ("int", 1, 3), "kind": ("choice", "a", "b", None)}
    trials = pd.DataFrame(
        {"number": range(60), "lr": 10 ** rng.uniform(-4, -1, 60), "n_layers": rng.integers(1, 4, 60)}
    )
    trials["kind"] = rng.choice(np.array(["a", "b", None], object), 60)
    trials["value"] = 100 + 10 * (np.log10(trials.lr) + 2) ** 2 + trials.n_layers
    trials["state"] = np.where(trials.number % 5 == 4, "pruned", "complete")
    best = trials[trials.state == "complete"].sort_values("value").iloc[0]
    return tuning.Tuned({k: best[k] for k in space}, best.value, trials, space, "s", "t.db")


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def few_of(planted, n):
    return tuning.Tuned(planted.params, planted.value, planted.trials[:n], planted.space, "s", "t.db")


def test_importances_find_what_was_planted(planted):
    shares = tuning.importances(planted)
    assert list(shares.index[:2]) == ["lr", "n_layers"] and shares["lr"] > 0.8 and shares["kind"] < 0.05
    assert shares.sum() == pytest.approx(1) and shares.equals(tuning.importances(planted))
    with pytest.raises(ValueError, match="importances need 4 complete trials or more, got 3"):
        tuning.importances(few_of(planted, 3))


def test_importances_are_drawn_or_excused(planted, ax):
    study_plots.plot_importances(ax, planted)
    assert [t.get_text() for t in ax.get_yticklabels()][-1] == "lr" and len(ax.patches) == 3
    assert ax.patches[-1].get_width() == pytest.approx(tuning.importances(planted)["lr"])
    ax.clear()
    study_plots.plot_importances(ax, few_of(planted, 3))
    assert ax.texts[0].get_text() == "3 complete trials:\nimportances need 4 or more" and not ax.patches


def test_history_shows_every_trial_and_the_best_so_far(planted, ax):
    study_plots.plot_history(ax, planted)
    lines = {line.get_label(): line for line in ax.lines}
    assert {"complete (48)", "pruned (12)", "best so far"} <= set(lines)
    assert sum(len(line.get_xdata()) for line in ax.lines) == 60 + 48
    best = lines["best so far"].get_ydata()
    assert (np.diff(best) <= 0).all() and best[-1] == planted.value
    assert ax.get_xlabel() == "trial" and "nats" in ax.get_ylabel()


def test_a_trial_far_off_does_not_take_up_the_scale(planted, ax):
    planted.trials.loc[7, "value"] = 1e6
    study_plots.plot_history(ax, planted)
    assert ax.get_ylim()[1] < 500 and sum((line.get_marker() == "^") * len(line.get_xdata()) for line in ax.lines) >= 1


def test_parallel_coordinates_hold_each_complete_trial_at_its_place(planted, ax):
    study_plots.plot_parallel(ax, planted)
    segments = ax.collections[0].get_segments()
    assert len(segments) == 48 and all(s.shape == (3, 2) for s in segments)
    heights = np.array(segments)[:, :, 1]
    assert heights.min() >= 0 and heights.max() <= 1
    complete = planted.trials[planted.trials.state == "complete"].sort_values("value", ascending=False)
    assert heights[:, 0] == pytest.approx((np.log10(complete.lr) + 4) / 3)
    assert set(heights[:, 2]) == {0.0, 0.5, 1.0}
    assert [t.get_text() for t in ax.get_xticklabels()] == ["lr", "n_layers", "kind"]
    assert {t.get_text() for t in ax.texts} >= {"0.0001", "0.1", "1", "3", "a", "b", "None"}
    best = next(line for line in ax.lines if line.get_label().startswith("best"))
    assert best.get_ydata() == pytest.approx(heights[-1])


# ---------------------------------------------------------------- several processes


def test_killed_in_a_trial_and_resumed_is_the_same_study(samples, processes, whole):
    """SIGKILL in the middle of the third trial; the resumed study tries and finds what one never interrupted does."""
    path = processes.folder / "killed.db"
    _, errors = processes.killed.communicate(timeout=120)
    assert processes.killed.returncode == -signal.SIGKILL, errors
    assert [t.state.name for t in trials_in(path)] == ["COMPLETE", "COMPLETE", "RUNNING"]
    resumed = search(samples, path, 12)
    assert resumed.trials.state.tolist().index("failed") == 2 and len(resumed.trials) == 13
    pd.testing.assert_frame_equal(tried(resumed), tried(whole), check_exact=True)
    lost, done = resumed.trials.loc[2], resumed.trials.loc[3]
    assert all(lost[name] == done[name] for name in SPACE), "done again with the same hyperparameters"


def test_two_processes_share_a_study(samples, processes):
    """They make the same file at once, and together do exactly n_trials, none of them twice."""
    path, n = processes.folder / "shared.db", 16
    for process in processes.pair:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    found = search(samples, path, n)
    assert found.trials.state.isin(["complete", "pruned"]).all() and len(found.trials) == n
    every = trials_in(path)
    done = [t for t in every if "surplus" not in t.user_attrs]
    by = pd.Series([t.user_attrs["worker"][1] for t in done]).value_counts()
    assert set(by.index) == {process.pid for process in processes.pair} and by.min() >= 2
    assert len({tuple(t.params.values()) for t in done}) == n
    assert [t.number for t in every] == list(range(len(every)))


def test_the_first_trial_can_be_given(samples, tmp_path):
    first = {"lr": 2e-3, "dropout": 0.25}
    found = search(samples, tmp_path / "a.db", 2, first=first)
    assert {k: found.trials.iloc[0][k] for k in first} == first and found.trials.iloc[1]["lr"] != 2e-3
    with pytest.raises(ValueError, match="first names 'lrr', which is not in the space"):
        search(samples, tmp_path / "b.db", 2, first={"lrr": 1})
    with pytest.raises(ValueError, match="lies outside of its range"):
        search(samples, tmp_path / "b.db", 2, first={"dropout": 0.9})
