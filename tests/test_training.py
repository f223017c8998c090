"""The loop: reproducible, resumable to the bit after a kill, honest about failure."""

import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

from helpers import models, schedules, tasks
from helpers.balance import weighted
from helpers.batches import Samples
from helpers.checkpoints import nested, random_states, read_checkpoint, set_random_states, under, write_checkpoint
from helpers.decoders import BernoulliHead, NegativeBinomialHead
from helpers.training import TrainingDiverged, fit, has_settled

ANNEALED = {"kl": schedules.scaled(0.1, "logistic-mid")}


@pytest.fixture
def samples(two_modalities):
    return Samples(two_modalities, "cpu")


def varix(seed=0):
    torch.manual_seed(seed)
    return models.varix({"rna": 30, "protein": 20}, 2)


def state(model):
    return torch.cat([v.flatten().double() for v in model.state_dict().values()])


def test_history_is_tidy(samples):
    history = fit(varix(), samples, epochs=3, weights=ANNEALED, batch_size=64)
    assert list(history.columns) == ["epoch", "split", "term", "value"]
    assert set(history.term) == {"nll/rna", "nll/protein", "kl", "total", "weight/kl"}
    assert sorted(history.epoch.unique()) == [1, 2, 3] and set(history.split) == {"train", "valid"}
    wide = history.query("split == 'train' and epoch == 2").set_index("term").value
    total = wide["nll/rna"] + wide["nll/protein"] + wide["weight/kl"] * wide["kl"]
    assert wide["total"] == pytest.approx(total, rel=1e-5)
    assert wide["weight/kl"] == pytest.approx(ANNEALED["kl"](1, 3))


def test_training_learns(samples):
    """The planted signal has three dimensions: three latent ones explain most of held-out variance."""
    model = models.varix(samples.n_vars, 3, n_layers=1, factor=1)
    history = fit(model, samples, epochs=80, weights=ANNEALED, batch_size=32, lr=5e-3)
    error = history.query("split == 'valid' and term == 'nll/rna'").value - 30 * 0.5 * np.log(np.pi)
    assert error.iloc[-1] < 0.25 * error.iloc[0]


def test_the_same_seed_gives_the_same_model_and_leaves_the_global_state(samples):
    a, b, c = varix(), varix(), varix()
    torch.manual_seed(5)
    fit(a, samples, epochs=3, batch_size=32, seed=1)
    drawn = torch.rand(1)
    fit(b, samples, epochs=3, batch_size=32, seed=1)
    fit(c, samples, epochs=3, batch_size=32, seed=2)
    assert torch.equal(state(a), state(b)) and not torch.equal(state(a), state(c))
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_early_stopping_restores_the_best_weights(samples):
    model = varix()
    history = fit(model, samples, epochs=300, batch_size=32, lr=2e-2, patience=5, weights={"kl": 0.01}, seed=3)
    valid = history.query("split == 'valid' and term == 'total'").set_index("epoch").value
    assert len(valid) < 300 and len(valid) - valid.idxmin() == 5
    again = Samples.__getitem__(samples, samples.rows("valid"))
    terms = model.losses(again, torch.Generator("cpu").manual_seed(3))
    total = weighted(terms, {"kl": 0.01})
    assert total.item() == pytest.approx(valid.min(), rel=1e-4)


def test_early_stopping_waits_for_the_annealing(samples):
    history = fit(varix(), samples, epochs=40, patience=1, batch_size=32, lr=2e-2, weights=ANNEALED, seed=3)
    assert history.epoch.max() > 0.7 * 40
    assert not has_settled({"kl": 0.98}, {"kl": 1.0}) and has_settled({"kl": 0.995}, {"kl": 1.0})


def test_divergence_is_one_sentence_and_keeps_the_last_good_weights(samples):
    model, calls = varix(), [0]
    honest = model.losses

    def poisoned(batch, generator=None):
        calls[0] += 1
        return {k: v * (float("nan") if calls[0] > 10 else 1) for k, v in honest(batch, generator).items()}

    model.losses = poisoned
    with pytest.raises(TrainingDiverged, match=r"epoch 3: .*nll/rna \(train\).*weights of epoch 2.*Lower lr") as caught:
        fit(model, samples, epochs=10, batch_size=32)
    assert torch.isfinite(state(model)).all()
    assert caught.value.history.epoch.max() == 2


def test_recorded_numbers_join_the_history_without_disturbing_the_run(samples):
    def record(model, samples):
        return {"noise": torch.rand(1).item(), "spread": tasks.embed(model, samples).std()}

    a, b = varix(), varix()
    history = fit(a, samples, epochs=4, batch_size=32, record=record, record_every=2)
    fit(b, samples, epochs=4, batch_size=32)
    assert history.query("term == 'spread'").epoch.tolist() == [2, 4]
    assert torch.equal(state(a), state(b))


def test_wrong_settings_are_named(samples):
    with pytest.raises(ValueError, match=r"unknown settings \['epoch'\].*epochs"):
        fit(varix(), samples, epochs=1, epoch=3)
    with pytest.raises(ValueError, match=r"weights for \['beta'\], but the model's loss terms are"):
        fit(varix(), samples, epochs=1, weights={"beta": 1.0})
    with pytest.raises(ValueError, match="precision must be"):
        fit(varix(), samples, epochs=1, precision="fp16")
    with pytest.raises(ValueError, match="epochs >= 1"):
        fit(varix(), samples, epochs=0)


def test_data_outside_the_support_is_refused(two_modalities):
    with pytest.raises(ValueError, match=r"modality 'rna' holds \d+ values below 0 .*NegativeBinomial cannot"):
        fit(models.varix({"rna": 30}, 2, heads={"rna": NegativeBinomialHead}), two_modalities, epochs=1)
    with pytest.raises(ValueError, match=r"modality 'rna' holds \d+ values below 0.0 and \d+ above 1.0"):
        fit(models.varix({"rna": 30}, 2, heads={"rna": BernoulliHead}), two_modalities, epochs=1)


def test_a_model_may_refuse_the_data(samples):
    model, seen = varix(), []

    def check(given):
        seen.append(given)
        raise ValueError("modality 'rna' is measured in no sample of class 'b'")

    before, model.check = state(model), check
    with pytest.raises(ValueError, match="measured in no sample of class 'b'"):
        fit(model, samples, epochs=1, batch_size=32)
    assert seen == [samples] and torch.equal(state(model), before)


def two_groups(model, slow=1.0):
    """Decoders learn at another rate than all else."""
    late = list(model.decoders.parameters())
    early = [p for p in model.parameters() if not any(p is q for q in late)]
    model.parameter_groups = lambda lr: [{"params": early}, {"params": late, "lr": lr * slow, "weight_decay": 0.0}]
    return model


def decoders(model):
    return torch.cat([p.detach().flatten().clone() for p in model.decoders.parameters()])


def test_a_model_may_have_parameter_groups_of_its_own(samples):
    still, moving, plain = two_groups(varix(), slow=0.0), two_groups(varix(), slow=0.1), varix()
    before = decoders(plain)
    for model in (still, moving, plain):
        fit(model, samples, epochs=2, batch_size=32)
    assert torch.equal(decoders(still), before) and not torch.equal(state(still), state(varix()))
    moved = [(decoders(m) - before).abs().mean() for m in (moving, plain)]
    assert 0 < moved[0] < 0.3 * moved[1]


def test_a_run_with_parameter_groups_resumes_bit_identical(samples, tmp_path):
    def stop(epoch, terms, settled):
        if epoch == 3:
            raise KeyboardInterrupt

    options = {"epochs": 6, "batch_size": 32, "checkpoint_every": 1}
    whole, resumed = two_groups(varix(), 0.1), two_groups(varix(seed=7), 0.1)
    history = fit(whole, samples, checkpoint=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        fit(two_groups(varix(), 0.1), samples, checkpoint=tmp_path / "killed", watch=stop, **options)
    again = fit(resumed, samples, checkpoint=tmp_path / "killed", **options)
    assert torch.equal(state(whole), state(resumed))
    pd.testing.assert_frame_equal(history, again, check_exact=True)


def test_a_parameter_in_no_group_is_refused(samples):
    model = varix()
    model.parameter_groups = lambda lr: [{"params": list(model.encoders.parameters())}]
    with pytest.raises(ValueError, match=r"parameter_groups leaves out 'decoders\.0\..*would never be trained"):
        fit(model, samples, epochs=1, batch_size=32)


def test_bf16_and_clipping_train(samples):
    for options in ({"precision": "bf16"}, {"clip_norm": 1.0}):
        history = fit(varix(), samples, epochs=20, batch_size=32, lr=5e-3, **options)
        valid = history.query("split == 'valid' and term == 'total'").value
        assert valid.iloc[-1] < valid.iloc[0]


def test_a_weight_covers_a_family_of_terms():
    terms = {"nll/a": torch.tensor(1.0), "nll/b": torch.tensor(2.0), "kl": torch.tensor(4.0)}
    assert weighted(terms, {"nll": 10.0, "kl": 0.5}).item() == 32
    assert weighted(terms, {"nll/b": 3.0}).item() == 11


SCRIPT = """
import os, signal, sys
import torch
sys.path.insert(0, {tests!r})
from test_training import ANNEALED, varix
import conftest
from helpers.batches import Samples
from helpers.training import fit
path, die_at = sys.argv[1], int(sys.argv[2])
samples = Samples(conftest.two_modalities.__wrapped__(), "cpu")
model = varix()
calls, honest = [0], model.losses
def mortal(batch, generator=None):
    calls[0] += 1
    if calls[0] == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(batch, generator)
model.losses = mortal
settings = dict(epochs=12, batch_size=32, weights=ANNEALED, patience=2)
history = fit(model, samples, checkpoint=path, checkpoint_every=1, **settings)
torch.save(model.state_dict(), path + ".pt")
history.to_csv(path + ".csv")
"""


def run_script(path, die_at):
    code = SCRIPT.format(tests=os.path.dirname(__file__))
    return subprocess.run([sys.executable, "-c", code, str(path), str(die_at)], capture_output=True, text=True)


def test_killed_and_resumed_is_bit_identical(tmp_path):
    """SIGKILL in the middle of an epoch, a new process, and the same bits as a run never interrupted."""
    assert run_script(tmp_path / "whole", -1).returncode == 0
    assert run_script(tmp_path / "killed", 41).returncode == -signal.SIGKILL
    assert (tmp_path / "killed").exists() and not (tmp_path / "killed.pt").exists()
    resumed = run_script(tmp_path / "killed", -1)
    assert resumed.returncode == 0, resumed.stderr
    whole, killed = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in ("whole", "killed"))
    assert all(torch.equal(whole[k], killed[k]) for k in whole)
    a, b = (pd.read_csv(tmp_path / f"{n}.csv", index_col=0) for n in ("whole", "killed"))
    pd.testing.assert_frame_equal(a, b, check_exact=True)


def test_checkpoints_of_another_run_and_damaged_ones_are_refused(samples, tmp_path):
    path = tmp_path / "run.safetensors"
    fit(varix(), samples, epochs=2, batch_size=32, checkpoint=path)
    with safe_open(path, "pt") as file:
        assert "model/encoders.0.head.weight" in file.keys()
    with pytest.raises(ValueError, match="belongs to a run with other settings"):
        fit(varix(), samples, epochs=2, batch_size=32, lr=0.5, checkpoint=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"run\.safetensors is damaged"):
        fit(varix(), samples, epochs=2, batch_size=32, checkpoint=path)


def test_a_finished_run_is_not_trained_again(samples, tmp_path):
    a, b = varix(), varix(seed=9)
    history = fit(a, samples, epochs=3, batch_size=32, checkpoint=tmp_path / "run")
    again = fit(b, samples, epochs=3, batch_size=32, checkpoint=tmp_path / "run")
    pd.testing.assert_frame_equal(history, again)
    assert torch.equal(state(a), state(b))


def test_checkpoints_written_before_weights_had_a_state_are_continued(samples, tmp_path):
    options = {"epochs": 4, "batch_size": 32, "weights": ANNEALED, "checkpoint": tmp_path / "run"}
    model, again = varix(), varix(seed=9)
    fit(model, samples, **options)
    header, tensors = read_checkpoint(tmp_path / "run")
    assert header.pop("weights") == {}
    write_checkpoint(tmp_path / "run", header, tensors)
    fit(again, samples, **options)
    assert torch.equal(state(model), state(again))


def test_what_is_written_is_read(tmp_path):
    tensors = {"optimiser/0/step": torch.tensor(3.0), "optimiser/1/step": torch.tensor(4.0), "model/a": torch.eye(2).T}
    write_checkpoint(tmp_path / "run", {"epoch": 3, "score": 0.1 + 0.2}, tensors)
    header, read = read_checkpoint(tmp_path / "run")
    assert header == {"epoch": 3, "score": 0.1 + 0.2} and read.keys() == tensors.keys()
    assert torch.equal(under("model", read)["a"], torch.eye(2)) and list(under("model", read)) == ["a"]
    assert nested(under("optimiser", read)) == {0: {"step": torch.tensor(3.0)}, 1: {"step": torch.tensor(4.0)}}


def test_random_states_are_given_back():
    own, device = {"noise": torch.Generator().manual_seed(3)}, torch.device("cpu")
    states = random_states(own, device)
    drawn = torch.rand(3), torch.rand(3, generator=own["noise"])
    set_random_states(states, own, device)
    assert torch.equal(torch.rand(3), drawn[0]) and torch.equal(torch.rand(3, generator=own["noise"]), drawn[1])


def test_cosine_decay_brings_the_learning_rate_to_rest(two_modalities):
    rates = []

    class Spy(torch.optim.AdamW):
        def step(self, *args, **kwargs):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args, **kwargs)

    torch.manual_seed(0)
    options = {"epochs": 5, "batch_size": 256, "lr": 1e-2, "optimiser": Spy}
    fit(varix(), Samples(two_modalities, "cpu"), decay="cosine", **options)
    assert rates[0] == pytest.approx(1e-2) and rates[-1] == pytest.approx(2e-4) and rates == sorted(rates, reverse=True)
    with pytest.raises(ValueError, match="decay must be one of none, cosine"):
        fit(varix(), Samples(two_modalities, "cpu"), decay="linear", **options)
