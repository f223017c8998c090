"""Wanted shares of the loss: reached, bounded, frozen, and the same bits after an interruption."""

import math

import pandas as pd
import pytest
import torch
from torch import nn

from helpers import models, schedules
from helpers.balance import Balanced, Schedules, Shares, contributions, first_look, group_of, magnitudes, weighing
from helpers.batches import Samples
from helpers.training import TrainingDiverged, fit

WANTED = {"nll": 0.7, "kl": 0.1, "paired": 0.2}


@pytest.fixture
def samples(two_modalities):
    return Samples(two_modalities, "cpu")


class Toy(nn.Module):
    """Quadratic terms of very different magnitude around minima that disagree; `nll` hides a constant of 5000.

    Where `shrinking`, the term kl has a minimum of zero and a parameter to itself: nothing keeps it up.
    """

    def __init__(self, shrinking=False):
        super().__init__()
        self.a, self.b, self.shrinking = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2)), shrinking

    def losses(self, batch, generator=None):
        far, near, rest = (self.a - 3).square().mean(), (self.a - 1).square().mean(), self.a.square().mean()
        return {
            "nll/x": 5000 + 1e3 * (1 + far),
            "nll/y": 10 * (1 + far),
            "kl": 1e-2 * (self.b.square().mean() if self.shrinking else 1 + near),
            "paired": 1 + rest,
            "discriminator": 7 + rest,
        }

    def floors(self, batch):
        return {"nll/x": torch.tensor(5000.0)}


def varix(seed=0):
    torch.manual_seed(seed)
    model = models.varix({"rna": 30, "protein": 20}, 2)
    constant = {"rna": 30, "protein": 20}
    model.floors = lambda batch: {f"nll/{m}": torch.tensor(0.5 * n * math.log(math.pi)) for m, n in constant.items()}
    return model


def train(model, samples, weights, epochs=40, **options):
    return fit(model, samples, weights=weights, epochs=epochs, batch_size=32, progress=False, **options)


def state(model):
    return torch.cat([v.flatten().double() for v in model.state_dict().values()])


def values(history, term, split="train"):
    return history[(history.split == split) & (history.term == term)].set_index("epoch").value


def shares(history, split="train"):
    return contributions(history).query("split == @split").pivot(index="epoch", columns="group", values="share")


# --- what is reached -----------------------------------------------------------------------------------------------


def test_terms_of_any_magnitude_reach_their_shares(samples):
    found = shares(train(Toy(), samples, Shares(WANTED), epochs=80, lr=0.1))
    assert set(found) == set(WANTED)  # the discriminator holds no share
    for name, share in WANTED.items():
        assert found[name].iloc[-40:].to_numpy() == pytest.approx(share, rel=0.01)


def test_the_first_epoch_is_weighed_by_a_look_at_the_untrained_model(samples):
    """Untrained: nll 10·1000 + 10·10 above its floor, kl 0.02, paired 1."""
    history = train(Toy(), samples, Shares(WANTED), epochs=1)
    first = {name: values(history, f"weight/{name}")[1] for name in WANTED}
    assert first["nll"] == 1
    assert first["kl"] == pytest.approx(0.1 / 0.7 * 10_100 / 0.02, rel=1e-5)
    assert first["paired"] == pytest.approx(0.2 / 0.7 * 10_100 / 1, rel=1e-5)


def test_another_reference_keeps_weight_one(samples):
    history = train(Toy(), samples, Shares(WANTED, reference="paired"), epochs=80, lr=0.1)
    assert (values(history, "weight/paired") == 1).all()
    assert shares(history)["nll"].iloc[-1] == pytest.approx(0.7, rel=0.03)


def test_terms_without_a_share_keep_weight_one(samples):
    history = train(Toy(), samples, Shares(WANTED), epochs=4)
    terms = {t: values(history, t)[3] for t in ("nll/x", "nll/y", "kl", "paired", "discriminator", "total")}
    w = {name: values(history, f"weight/{name}")[3] for name in WANTED}
    total = terms["nll/x"] + terms["nll/y"] + w["kl"] * terms["kl"] + w["paired"] * terms["paired"]
    assert terms["total"] == pytest.approx(total + terms["discriminator"], rel=1e-6)


def test_a_real_model_holds_the_shares_of_its_deviance(samples):
    """Without the floors the constant ½ log π per feature would count as reconstruction."""
    weights = Shares({"nll": 0.9, "kl": 0.1}, anneal={"kl": "logistic-early"}, until=0.7)
    history = train(varix(), samples, weights, epochs=80, lr=5e-3)
    assert values(history, "floor/nll/rna")[0] == pytest.approx(15 * math.log(math.pi), rel=1e-6)
    held = shares(history)["kl"].iloc[50:]
    assert held.mean() == pytest.approx(0.1, rel=0.15)


# --- bounds --------------------------------------------------------------------------------------------------------


def test_a_weight_changes_at_most_twofold_in_an_epoch(samples):
    history = train(Toy(), samples, Shares(WANTED, until=1, momentum=0), lr=0.3)
    ratios = pd.concat([values(history, f"weight/{n}").pipe(lambda w: w / w.shift()).dropna() for n in WANTED])
    assert ratios.between(0.5 - 1e-12, 2 + 1e-12).all() and (ratios != 1).any()


def test_a_term_that_falls_to_zero_keeps_a_bounded_weight():
    balanced = Balanced(Shares({"nll": 0.5, "kl": 0.5}, until=1, limit=100), 60)
    balanced.begin(lambda: ({"nll": 8.0, "kl": 2.0}, {}))
    for t in range(59):
        balanced.observe(t, {"nll": 8.0, "kl": 0.0, "total": 8.0})
    assert balanced.at(59) == pytest.approx({"nll": 1.0, "kl": 8 / 2 * 100}, rel=1e-6)
    with pytest.warns(UserWarning, match=r"not reached: 'kl' holds .*, not 0\.5"):
        balanced.end()


def test_a_reference_that_falls_to_zero_keeps_the_others_above_zero():
    balanced = Balanced(Shares({"nll": 0.5, "kl": 0.5}, until=1, limit=100), 60)
    balanced.begin(lambda: ({"nll": 8.0, "kl": 2.0}, {}))
    for t in range(59):
        balanced.observe(t, {"nll": 0.0, "kl": 2.0})
    assert balanced.last() == pytest.approx({"nll": 1.0, "kl": 8 / 100 / 2}, rel=1e-6)


def test_a_term_that_begins_at_zero_keeps_weight_one_until_it_differs():
    balanced = Balanced(Shares({"nll": 0.5, "kl": 0.5}, until=1, momentum=0), 20)
    balanced.begin(lambda: ({"nll": 10.0, "kl": 0.0}, {}))
    balanced.observe(0, {"nll": 10.0, "kl": 0.0})
    assert balanced.at(1) == {"nll": 1.0, "kl": 1.0}
    for t in range(1, 10):
        balanced.observe(t, {"nll": 10.0, "kl": 0.1})
    assert balanced.at(10)["kl"] == pytest.approx(100)


def test_a_collapsing_term_does_not_stop_a_training(samples):
    with pytest.warns(UserWarning, match=r"not reached: 'kl' holds 0\.00\d+, not 0\.5"):
        history = train(Toy(shrinking=True), samples, Shares({"paired": 0.5, "kl": 0.5}), epochs=60, lr=0.1)
    assert values(history, "kl").iloc[-1] < 1e-7 and history.value.abs().max() < math.inf
    largest = 1e4 * values(history, "paired").max() / values(history, "kl").max()
    assert 100 < values(history, "weight/kl").max() <= largest


# --- frozen, settled, annealed -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:shares of the loss were not reached")
def test_weights_are_frozen_after_until(samples):
    history = train(Toy(), samples, Shares(WANTED, until=0.25), epochs=20, lr=0.02)
    for name in ("kl", "paired"):
        weight = values(history, f"weight/{name}")
        assert weight.loc[6:].nunique() == 1  # balanced in epochs 1 to 5, set from then on
        assert weight.loc[:6].nunique() == 6


def told(samples, weights, epochs=20):
    """For which epochs `watch` was told that all is settled."""
    settled = []
    train(Toy(), samples, weights, epochs, watch=lambda at, terms, done: settled.append(done))
    return settled


def test_a_run_settles_once_weights_are_frozen_and_annealed(samples):
    assert told(samples, Shares(WANTED, until=0.25)) == [False] * 5 + [True] * 15
    late = {"kl": lambda t, T: min(1.0, (t + 1) / 12)}
    assert told(samples, Shares(WANTED, until=0.25, anneal=late)) == [False] * 11 + [True] * 9
    assert told(samples, Shares(WANTED, until=1)) == [False] * 20


def test_patience_waits_until_weights_are_frozen(samples):
    history = train(varix(), samples, Shares({"nll": 0.9, "kl": 0.1}), epochs=60, patience=1, lr=2e-2, seed=3)
    assert 30 < history.epoch.max() < 60


def test_valid_totals_compare_once_weights_are_frozen(samples):
    history = train(Toy(), samples, Shares(WANTED, until=0.5, anneal={"kl": "logistic-early"}), epochs=10)
    curve = schedules.curve("logistic-early")
    weight = values(history, "weight/kl")[10] / curve(9, 10)  # of the balance alone
    assert values(history, "weight/kl")[7] == pytest.approx(weight * curve(6, 10))
    for epoch in (6, 7, 8):
        t = {n: values(history, n, "valid")[epoch] for n in ("nll/x", "nll/y", "kl", "paired", "discriminator")}
        w = {"kl": weight * curve(9, 10), "paired": values(history, "weight/paired")[epoch]}
        total = sum(w.get(name, 1.0) * v for name, v in t.items())
        assert values(history, "total", "valid")[epoch] == pytest.approx(total, rel=1e-6)


# --- exactness -----------------------------------------------------------------------------------------------------


def test_the_first_look_leaves_no_trace(samples):
    """Weights found before training and kept, or given as the same numbers: the same bits in the end."""
    model, same = varix(), varix()
    history = train(model, samples, Shares({"nll": 0.9, "kl": 0.1}, until=0), epochs=3)
    found = {name: values(history, f"weight/{name}").iloc[0] for name in ("nll", "kl")}
    again = train(same, samples, found, epochs=3)
    assert torch.equal(state(model), state(same))
    pd.testing.assert_frame_equal(history[history.epoch > 0].reset_index(drop=True), again, check_exact=True)


def test_the_first_look_is_at_no_more_than_1024_samples_but_floors_at_all(samples):
    seen = []

    class Counting(Toy):
        def losses(self, batch, generator=None):
            seen.append(len(batch))
            return super().losses(batch, generator)

        def floors(self, batch):
            return {"nll/x": batch.x["rna"].mean()}

    many = torch.arange(200).repeat(10)
    samples.rows = lambda split: many
    noise = torch.Generator().manual_seed(1)
    before = noise.get_state()
    _, floors = first_look(Counting(), samples, noise, seed=0)
    assert seen == [1024] and torch.equal(noise.get_state(), before)
    assert floors["nll/x"] == pytest.approx(samples[torch.arange(200)].x["rna"].mean().item(), rel=1e-4)


BALANCED = Shares({"nll": 0.85, "kl": 0.15}, anneal={"kl": "logistic-early"}, until=0.6)


@pytest.mark.parametrize("died_in", [1, 4, 9], ids=["first epoch", "while balancing", "frozen"])
def test_interrupted_and_resumed_is_bit_identical(samples, tmp_path, died_in):
    """Stopped within an epoch, continued by a new model: the same bits as a run never interrupted."""
    whole, killed, resumed = varix(), varix(), varix(seed=5)
    if died_in == 1:
        resumed = varix()  # nothing was written: it starts over
    history = train(whole, samples, BALANCED, epochs=12, checkpoint=tmp_path / "whole", checkpoint_every=1)
    honest, steps, watched = killed.losses, [], []

    def mortal(batch, generator=None):
        steps.extend([len(batch)] * torch.is_grad_enabled())
        if sum(steps) > 127 * (died_in - 1) + 64:  # of 127 training samples in 4 batches
            raise KeyboardInterrupt
        return honest(batch, generator)

    killed.losses = mortal
    options = {"checkpoint": tmp_path / "killed", "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        train(killed, samples, BALANCED, epochs=12, watch=lambda *told: watched.append(told), **options)
    assert len(watched) == died_in - 1
    again = train(resumed, samples, BALANCED, epochs=12, **options)
    assert torch.equal(state(whole), state(resumed))
    pd.testing.assert_frame_equal(history, again, check_exact=True)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "killed").read_bytes()


@pytest.mark.parametrize(
    "other",
    [
        {"kl": 0.1},
        Shares({"nll": 0.8, "kl": 0.2}),
        Shares({"nll": 0.9, "kl": 0.1}, until=0.75),
        Shares({"nll": 0.9, "kl": 0.1}, momentum=0.5),
        Shares({"nll": 0.9, "kl": 0.1}, limit=10),
        Shares({"nll": 0.9, "kl": 0.1}, reference="kl"),
        Shares({"nll": 0.9, "kl": 0.1}, anneal={"kl": "3phase-linear"}),
    ],
    ids=["fixed", "shares", "until", "momentum", "limit", "reference", "anneal"],
)
def test_a_checkpoint_of_other_shares_is_refused(samples, tmp_path, other):
    path = tmp_path / "run"
    train(varix(), samples, Shares({"nll": 0.9, "kl": 0.1}), epochs=4, checkpoint=path)
    train(varix(), samples, Shares({"kl": 0.1, "nll": 0.9}, reference="nll"), epochs=4, checkpoint=path)  # the same
    with pytest.raises(ValueError, match="belongs to a run with other settings"):
        train(varix(), samples, other, epochs=4, checkpoint=path)


def test_shares_may_serve_several_trainings(samples):
    a, b = varix(), varix()
    train(a, samples, BALANCED, epochs=3)
    train(b, samples, BALANCED, epochs=3)
    assert torch.equal(state(a), state(b))


# --- what is wrong -------------------------------------------------------------------------------------------------


def test_wrong_shares_are_named(samples):
    for wanted, found in (({"nll": 0.9, "kl": 0.2}, "1.1"), ({"nll": 1.5, "kl": -0.5}, "1"), ({}, "0")):
        with pytest.raises(ValueError, match=rf"shares must be positive and sum to 1, but .* sums to {found}$"):
            Shares(wanted)
    with pytest.raises(ValueError, match="'nl' holds no share; did you mean 'nll'"):
        Shares(WANTED, reference="nl")
    with pytest.raises(ValueError, match=r"'mmd' holds no share: the groups are \['nll', 'kl', 'paired'\]"):
        Shares(WANTED, anneal={"mmd": "logistic-mid"})
    with pytest.raises(ValueError, match="unknown annealing curve 'logistic'"):
        Shares(WANTED, anneal={"kl": "logistic"})
    for options in ({"until": 1.5}, {"momentum": 1.0}, {"limit": 0.5}):
        with pytest.raises(ValueError, match="need 0 <= until <= 1, 0 <= momentum < 1 and limit >= 1"):
            Shares(WANTED, **options)


def test_a_group_without_a_term_is_the_same_error_as_for_fixed_weights(samples):
    for weights in ({"cycle": 0.5}, Shares({"nll": 0.5, "cycle": 0.5})):
        with pytest.raises(ValueError, match=r"weights for \['cycle'\], but the model's loss terms are \['nll/x'"):
            train(Toy(), samples, weights, epochs=1)


def test_floors_of_no_term_are_refused(samples):
    toy = Toy()
    toy.floors = lambda batch: {"nll": torch.tensor(1.0)}
    with pytest.raises(ValueError, match=r"model\.floors names \['nll'\], but the model's loss terms are"):
        train(toy, samples, Shares(WANTED), epochs=1)


def test_a_model_that_is_not_finite_from_the_start_is_told(samples):
    toy = Toy()
    toy.a.data[:] = math.nan
    with pytest.raises(TrainingDiverged, match=r"epoch 1: nll/x \(train\), .* is no longer finite"):
        train(toy, samples, Shares(WANTED), epochs=1)


# --- parts ---------------------------------------------------------------------------------------------------------


def test_a_name_weighs_its_term_or_its_family():
    terms = ["nll/a", "nll/b", "kl"]
    assert group_of(terms, {"nll": 1, "nll/b": 2}) == {"nll/a": "nll", "nll/b": "nll/b", "kl": None}
    sizes = magnitudes({"nll/a": 5.0, "nll/b": -1.0, "kl": 9.0}, {"nll/a": 7.0}, ["nll"])
    assert sizes == {"nll": 3.0}


def test_numbers_and_curves_are_schedules():
    fixed = weighing({"kl": schedules.scaled(2.0, "3phase-linear"), "nll": 3}, 12)
    assert isinstance(fixed, Schedules) and isinstance(weighing(Shares(WANTED), 12), Balanced)
    assert [fixed.at(t)["kl"] for t in (0, 6, 11)] == [0.0, 1.0, 2.0] and fixed.at(6)["nll"] == 3.0
    assert fixed.last() == fixed.at(11) == fixed.plan()[-1]
    assert weighing(None, 3).at(0) == {}


# --- the figure's numbers ------------------------------------------------------------------------------------------


def table(*rows):
    return pd.DataFrame(rows, columns=["epoch", "split", "term", "value"])


WRITTEN = table(
    (1, "train", "nll/a", 12.0),
    (1, "train", "nll/b", 8.0),
    (1, "train", "kl", 10.0),
    (1, "train", "adversarial", 2.0),
    (1, "train", "total", 24.0),
    (1, "valid", "nll/a", 22.0),
    (1, "valid", "nll/b", 8.0),
    (1, "valid", "kl", 40.0),
    (1, "valid", "adversarial", 6.0),
    (1, "valid", "R2", 0.5),  # recorded, no loss term
    (1, "train", "weight/kl", 0.2),
)


def test_contributions_are_weighted_and_sum_to_one():
    found = contributions(WRITTEN).set_index(["split", "group"]).share
    assert dict(found["train"]) == pytest.approx({"nll": 20 / 24, "kl": 2 / 24, "adversarial": 2 / 24})
    assert dict(found["valid"]) == pytest.approx({"nll": 30 / 44, "kl": 8 / 44, "adversarial": 6 / 44})


def test_contributions_count_from_the_floors_and_leave_out_what_is_asked():
    found = contributions(WRITTEN, {"nll/a": 10.0, "nll/b": 4.0}, outside=["adversarial"])
    train = found[found.split == "train"].set_index("group").share
    assert list(found.columns) == ["epoch", "split", "group", "share"]
    assert dict(train) == pytest.approx({"nll": 6 / 8, "kl": 2 / 8})
    written = pd.concat([table((0, "train", "floor/nll/a", 10.0), (0, "train", "floor/kl", 0.0)), WRITTEN])
    by_itself = contributions(written).query("split == 'train'").set_index("group").share
    assert dict(by_itself) == pytest.approx({"nll": 2 / 4, "kl": 2 / 4})  # nll/a and kl hold shares, the rest does not


def test_contributions_follow_the_weights_of_each_epoch(samples):
    history = train(Toy(), samples, {"kl": schedules.scaled(1e5, "3phase-linear")}, epochs=9)
    found = contributions(history, {"nll/x": 5000.0}, ["discriminator", "paired"]).query("split == 'train'")
    assert found.groupby("epoch").share.sum().to_numpy() == pytest.approx(1)
    kl = found[found.group == "kl"].set_index("epoch").share
    weighted = 1e5 * schedules.three_phase_linear(5, 9) * values(history, "kl")[6]
    rest = values(history, "nll/x")[6] - 5000 + values(history, "nll/y")[6]
    assert kl[1] == 0 and kl[6] == pytest.approx(weighted / (weighted + rest), rel=1e-4)


def test_contributions_of_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"floors names 'nll/c', but the history holds .*did you mean 'nll/b'"):
        contributions(WRITTEN, {"nll/c": 1.0})
    with pytest.raises(ValueError, match=r"outside names 'critic', but the history holds \['adversarial', 'kl', 'nll'"):
        contributions(WRITTEN, outside=["critic"])
