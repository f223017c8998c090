"""X-modalix and Imagix: pictures of any size, latent spaces made one, translation between modalities."""

import math
from dataclasses import replace

import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from torch import nn

from helpers import alignment, balance, fusion, models, penalties, schedules, tasks, training
from helpers.batches import Samples
from helpers.decoders import BernoulliHead, NegativeBinomialHead
from helpers.encoders import DenseEncoder, ImageEncoder, Posterior
from helpers.layers import Convolution, Deconvolution, halvings
from helpers.models.assembly import check_linked
from helpers.priors import StandardNormal

SIZES = [(64, 64, 1), (48, 65, 3), (28, 28, 1), (9, 33, 2), (8, 8, 1), (100, 57, 2)]


def picture_of(factor: np.ndarray, size=(12, 17)) -> np.ndarray:
    """A bright blob that wanders along a line with `factor` [n] -> [n, h * w]."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    at = (np.tanh(factor) + 1) / 2 * (size[1] - 5) + 2
    return np.exp(-((rows - size[0] / 2) ** 2 + (columns - at[:, None, None]) ** 2) / 8).reshape(len(factor), -1)


def toy(n=240, paired=True, seed=0, counts=False) -> mudata.MuData:
    """Two planted factors, seen as a profile of 20 genes and as a picture of 12 × 17 pixels; classes by the first."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(n, 2))
    x = factors @ rng.normal(size=(2, 20)) + 0.1 * rng.normal(size=(n, 20))
    x = rng.poisson(np.exp(0.3 * x + 1)).astype(float) if counts else x
    names = np.array([f"s{i}" for i in range(n)])
    shown = names if paired else np.array([f"p{i}" for i in range(n)])
    other = factors if paired else rng.normal(size=(n, 2))
    image = AnnData(picture_of(other[:, 0]).astype(np.float32), pd.DataFrame(index=shown))
    image.uns["image_shape"] = np.array([12, 17, 1])
    mdata = mudata.MuData({"rna": AnnData(x.astype(np.float32), pd.DataFrame(index=names)), "image": image})
    first = (
        pd.Series(factors[:, 0], names) if paired else pd.Series(np.r_[factors[:, 0], other[:, 0]], np.r_[names, shown])
    )
    first = first[mdata.obs_names]
    mdata.obs["class"] = pd.Categorical(np.where(first < -0.4, "low", np.where(first > 0.4, "high", "middle")))
    mdata.obs["split"] = np.resize(["train", "train", "train", "valid", "test"], mdata.n_obs)
    mdata.uns["dataset"] = {"modalities": {"rna": "counts" if counts else "continuous", "image": "image"}}
    return mdata


def fitted(samples, model, epochs=40, seed=0, **weights):
    given = {"kl": schedules.scaled(0.05, "logistic-early")} | weights
    return training.fit(model, samples, weights=given, epochs=epochs, batch_size=48, lr=3e-3, seed=seed, progress=False)


@pytest.fixture(scope="module")
def translated():
    """A paired toy, and an X-modalix trained on it."""
    torch.manual_seed(0)
    samples = Samples(toy(), "cpu")
    model = models.xmodalix(samples.n_vars, samples.shapes, 4, width=8, extra={"translation": penalties.translation})
    history = fitted(samples, model, paired=10.0)
    return samples, model, history


# --- pictures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SIZES)
def test_any_size_goes_down_and_comes_back(shape):
    x = torch.rand(3, math.prod(shape))
    down, up = Convolution(shape, 4), Deconvolution(5, shape, 4)
    assert down(x).shape == (3, down.n_out)
    assert up(torch.randn(3, 5)).shape == x.shape
    assert 4 <= min(halvings(shape)[-1]) < 8


def test_a_convolution_sees_height_width_and_channels_in_this_order():
    x = np.zeros((1, 16, 24, 2), np.float32)
    x[0, 3, 20, 1] = 1  # one pixel of the second channel
    down = Convolution((16, 24, 2), 1)
    with torch.no_grad():
        first = down.body[0][0]
        nn.init.zeros_(first.weight)
        first.weight[:, 1] = 1
        nn.init.zeros_(first.bias)
        out = first(torch.from_numpy(x).flatten(1).unflatten(-1, (16, 24, 2)).permute(0, 3, 1, 2))[0, 0]
        assert down.body[0](torch.from_numpy(x).permute(0, 3, 1, 2)).amax() == 1
    assert {tuple(place) for place in out.nonzero().tolist()} == {(1, 9), (1, 10), (2, 9), (2, 10)}


@pytest.mark.parametrize("shape", [(7, 20, 1), (20, 20), (20, 20, 0)])
def test_pictures_too_small_or_without_a_shape(shape):
    with pytest.raises(ValueError, match="at least 8 × 8"):
        Convolution(shape)


def test_imagix_learns_pictures_that_are_not_square():
    torch.manual_seed(0)
    mdata = toy()
    samples = Samples(only(mdata, "image"), "cpu")
    model = models.imagix(samples.shapes["image"], 3, width=8)
    fitted(samples, model, epochs=30)
    x, x_hat = mdata["image"].X, tasks.reconstruct(model, samples)["image"]
    test = mdata.obs["split"].to_numpy() == "test"
    lost = ((x - x_hat)[test] ** 2).sum() / ((x[test] - x[~test].mean(0)) ** 2).sum()
    assert lost < 0.15


def test_pixels_stay_within_0_and_1_under_a_bernoulli_head():
    model = models.imagix((9, 12, 1), 2, 4, head=BernoulliHead)
    made = tasks.sample(model, 5)["image"]
    assert made.shape == (5, 108) and made.min() >= 0 and made.max() <= 1


def test_a_picture_that_lost_pixels_is_refused():
    mdata = toy()
    mdata = mudata.MuData({"rna": mdata["rna"], "image": mdata["image"][:, :100].copy()})
    with pytest.raises(ValueError, match=r"100 pixels.*select='none'"):
        Samples(mdata, "cpu")


def only(mdata: mudata.MuData, name: str) -> mudata.MuData:
    from helpers import datasets

    return datasets.only(mdata, [name])


# --- separate latent spaces ----------------------------------------------------------------------------------------


def test_mixture_keeps_candidates_apart():
    q = [Posterior(torch.full((3, 2), float(k)), torch.full((3, 2), float(k))) for k in (1, 2)]
    mask = torch.tensor([[True, True, False], [True, False, False]])
    joint, weight = fusion.mixture(q, mask)
    assert joint.mean.shape == (2, 3, 2)
    torch.testing.assert_close(weight, torch.tensor([[0.5, 1, 0], [0.5, 0, 0]]))
    assert (joint.mean[1, 1:] == 0).all() and (joint.logvar[0, 2] == 0).all()
    with pytest.raises(ValueError, match="point and Gaussian"):
        fusion.mixture([q[0], Posterior(q[1].mean, None)], mask)


def test_what_is_hidden_cannot_change_a_posterior(translated):
    samples, model, _ = translated
    batch = samples[samples.rows("test")]
    z = tasks.z_of(model, batch.showing("rna"))
    batch = replace(batch, x={**batch.x, "image": torch.rand_like(batch.x["image"])})
    torch.testing.assert_close(tasks.z_of(model, batch.showing("rna")), z)


def test_zeros_of_missing_samples_do_not_enter_batch_normalisation():
    torch.manual_seed(0)
    samples = Samples(toy(paired=False), "cpu")
    model = models.xmodalix(samples.n_vars, samples.shapes, 4, width=4, classes={})
    alone = model.encoders[0].body[0][1]
    model.train()
    model.encode(samples[samples.rows("train")])
    first = model.encoders[0].body[0][0]
    rows = samples[samples.rows("train")]
    seen = first(rows.x["rna"][rows.mask["rna"]])
    torch.testing.assert_close(alone.running_mean, 0.1 * seen.mean(0))


def test_one_measured_sample_in_a_training_batch_is_passed_over():
    samples = Samples(toy(paired=False), "cpu")
    model = models.xmodalix(samples.n_vars, samples.shapes, 4, width=4).train()
    rows = torch.tensor([0, 1, 2, 3, 4, samples.n_obs - 1])  # five profiles, one picture
    terms = model.losses(samples[rows])
    assert terms["nll/image"] == 0 and terms["nll/rna"] > 0
    sum(terms.values()).backward()


def test_losses_are_those_of_each_modality_by_itself(translated):
    samples, model, _ = translated
    batch = samples[torch.arange(8)]
    terms = model.eval().losses(batch, torch.Generator().manual_seed(0))
    for m in ("rna", "image"):
        alone = models.part(model, m).eval()
        q, _ = alone.encode(batch)
        torch.testing.assert_close(terms[f"kl/{m}"], StandardNormal(4).kl(q, q.mean).mean())
    assert set(terms) == {
        "nll/rna", "nll/image", "kl/rna", "kl/image", "paired", "adversarial", "translation/rna to image",
        "translation/image to rna",
    }  # fmt: skip


def test_floors_leave_the_squared_error(translated):
    samples, model, _ = translated
    batch = samples[torch.arange(16)]
    floors = model.floors(batch)
    with torch.no_grad():
        p = model.decode(torch.zeros(16, 4))["image"]
        nll = -p.log_prob(batch.x["image"]).sum(-1).mean()
        torch.testing.assert_close(nll - floors["nll/image"], (p.mean - batch.x["image"]).square().sum(-1).mean())


def test_part_trains_one_modality_and_leaves_the_rest():
    torch.manual_seed(0)
    samples = Samples(toy(), "cpu")
    model = models.xmodalix(samples.n_vars, samples.shapes, 4, width=4)
    before = {k: v.clone() for k, v in model.named_parameters()}
    fitted(samples, models.part(model, "image"), epochs=2)
    moved = {k for k, v in model.named_parameters() if not torch.equal(v, before[k])}
    assert moved and all(k.startswith(("encoders.1", "decoders.1")) for k in moved)
    with pytest.raises(ValueError, match="no modality 'protein'; it has rna, image"):
        models.part(model, "protein")


def test_all_modalities_go_on_training_after_one_was_trained_first():
    torch.manual_seed(0)
    samples = Samples(toy(), "cpu")
    model = models.xmodalix(samples.n_vars, samples.shapes, 4, width=4)
    fitted(samples, models.part(model, "image"), epochs=2)
    before = {k: v.clone() for k, v in model.named_parameters()}
    fitted(samples, model, epochs=2)
    still = {k for k, v in model.named_parameters() if torch.equal(v, before[k])}
    assert not still


def test_three_modalities_find_one_space():
    torch.manual_seed(0)
    mdata = toy()
    rng = np.random.default_rng(1)
    third = AnnData((mdata["rna"].X @ rng.normal(size=(20, 15)) / 5).astype(np.float32), mdata["rna"].obs.copy())
    three = mudata.MuData({"rna": mdata["rna"], "image": mdata["image"], "protein": third})
    three.obs = mdata.obs
    samples = Samples(three, "cpu")
    model = models.xmodalix(samples.n_vars, samples.shapes, 3, width=4)
    fitted(samples, model, epochs=120, paired=20.0)
    z = {m: tasks.embed(model, samples, "test", modality=m) for m in samples.modalities}
    assert alignment.foscttm(z["rna"], z["protein"]) < 0.15
    assert alignment.foscttm(z["rna"], z["image"]) < 0.4  # the picture shows one of the two factors


def test_fewer_than_two_modalities():
    with pytest.raises(ValueError, match="two modalities or more"):
        models.xmodalix({"rna": 10})


# --- penalties -----------------------------------------------------------------------------------------------------


def toy_model():
    return models.xmodalix({"rna": 20, "image": 204}, {"image": (12, 17, 1)}, 4, width=4)


def latent_of(z: torch.Tensor, weight=None, batch=None) -> penalties.Latent:
    weight = torch.full(z.shape[:2], 1 / len(z)) if weight is None else weight
    return penalties.Latent(Posterior(z, torch.zeros_like(z)), weight, z, StandardNormal(z.shape[-1]), batch, None)


def test_paired_is_the_mean_distance_of_samples_both_saw():
    z = torch.tensor([[[0.0, 0], [1, 1], [5, 5]], [[1.0, 3], [1, 1], [9, 9]]])
    weight = torch.tensor([[0.5, 0.5, 1.0], [0.5, 0.5, 0.0]])
    assert penalties.paired(latent_of(z, weight)) == pytest.approx((2 + 0) / 2)
    third = torch.cat([z, z[:1] + 100]), torch.cat([weight, torch.zeros(1, 3)])
    assert penalties.paired(latent_of(*third)) == pytest.approx(1)  # pairs that nobody has do not count
    nobody = torch.tensor([[1.0, 1, 1], [0, 0, 0]])
    assert penalties.paired(latent_of(z, nobody)) == 0


def test_the_adversary_is_zero_where_it_knows_nothing_and_positive_elsewhere():
    adversary = penalties.Adversary(3, 2)
    nn.init.zeros_(adversary.classifier[-1].weight)
    nn.init.zeros_(adversary.classifier[-1].bias)
    z = torch.randn(2, 50, 3)
    assert float(adversary(latent_of(z)).detach()) == pytest.approx(0, abs=1e-6)
    adversary.classifier[-1].bias.data = torch.tensor([2.0, -1.0])
    assert float(adversary(latent_of(z)).detach()) > 0.5


def test_the_two_sides_of_the_adversary_do_not_touch_each_other():
    torch.manual_seed(0)
    adversary = penalties.Adversary(3, 2, smooth=0.0)
    z = (torch.randn(2, 50, 3) + torch.tensor([1.0, -1.0])[:, None, None]).requires_grad_()
    adversary(latent_of(z)).backward()
    told = torch.log_softmax(adversary.classifier(z.detach()), -1)
    error = -(told[0, :, 0].mean() + told[1, :, 1].mean()) / 2
    wanted = torch.autograd.grad(error, list(adversary.parameters()))
    for parameter, gradient in zip(adversary.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    confusion = -torch.log_softmax(adversary.classifier(z), -1).mean() - math.log(2)
    torch.testing.assert_close(z.grad, torch.autograd.grad(confusion, z)[0])


def test_the_adversary_counts_modalities_equally():
    adversary = penalties.Adversary(2, 2)
    z, few_ = torch.randn(2, 10, 2), torch.zeros(2, 10)
    few_[0], few_[1, 0] = 1, 1
    weight = few_ / few_.sum(0)
    guess = torch.log_softmax(adversary.classifier(z), -1).mean(-1)
    wanted = -(guess[0].mean() + guess[1, 0]) / 2 - math.log(2)
    torch.testing.assert_close(adversary(latent_of(z, weight)), wanted)
    assert [len(g["params"]) for g in toy_model().parameter_groups(1e-3)][1] == 6  # the classifier's, by themselves


def test_the_discriminator_learns_and_is_then_deceived():
    """Its accuracy begins above chance and falls towards it; so does that of a classifier of the test's own."""
    torch.manual_seed(0)
    samples = Samples(toy(), "cpu")
    model = models.xmodalix(samples.n_vars, samples.shapes, 4, width=4)

    def told(model, samples) -> dict[str, float]:
        z = {m: tasks.embed(model, samples, "valid", modality=m) for m in samples.modalities}
        guess = [model.penalties["adversarial"].told(torch.from_numpy(v)).numpy() for v in z.values()]
        own = float(np.mean([(g == k).mean() for k, g in enumerate(guess)]))
        return {"accuracy": own, "independent": alignment.modality_accuracy(z)}

    weights = {"kl": 0.05, "paired": 0.0, "adversarial": schedules.scaled(30.0, "3phase-linear")}
    options = {"epochs": 120, "batch_size": 48, "lr": 1e-3, "progress": False, "record": told, "record_every": 10}
    history = training.fit(model, samples, weights=weights, **options)
    own, independent = (history[history.term == t].value.to_numpy() for t in ("accuracy", "independent"))
    assert own.max() > 0.9 and independent.max() > 0.95
    assert own[-3:].mean() < 0.8 and independent[-3:].mean() < 0.8


def test_class_centres_are_running_means_in_which_modalities_count_equally():
    centres = penalties.ClassCentres("c", 2, 1, 2, momentum=0.5).train()
    z = torch.tensor([[[1.0], [3.0], [0.0]], [[0.0], [0.0], [8.0]]])
    weight = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    batch = type("Batch", (), {"covariates": {"c": torch.tensor([0, 0, 0])}})
    value = centres(latent_of(z, weight, batch))
    torch.testing.assert_close(centres.centres, torch.tensor([[5.0], [0.0]]))  # mean of 2 and 8; class 1 never met
    torch.testing.assert_close(value, torch.tensor((4 + 2) / 2 / 2 + 3 / 2))
    centres(latent_of(z + 2, weight, batch))
    torch.testing.assert_close(centres.centres[0], torch.tensor([6.0]))  # half of the way
    centres.eval()(latent_of(z + 9, weight, batch))
    torch.testing.assert_close(centres.centres[0], torch.tensor([6.0]))  # not outside training


def test_samples_without_a_class_are_left_out_of_the_centres():
    centres = penalties.ClassCentres("c", 2, 1, 1).train()
    batch = type("Batch", (), {"covariates": {"c": torch.tensor([-1, 1])}})
    centres(latent_of(torch.tensor([[[100.0], [2.0]]]), torch.ones(1, 2), batch))
    assert centres.centres.flatten().tolist() == [0.0, 2.0]


def test_translation_is_the_squared_error_of_the_other_modality(translated):
    samples, model, _ = translated
    batch = samples[torch.arange(10)]
    q, weight = model.eval().encode(batch)
    latent = penalties.Latent(q, weight, q.mean, model.prior, batch, None, model)
    expected = tasks.translate(model, samples, "rna", "image")[:10]
    wanted = ((expected - batch.x["image"].numpy()) ** 2).sum(-1).mean()
    with torch.no_grad():
        found = penalties.translation(latent)["rna to image"]
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_a_cycle_through_an_exact_inverse_costs_nothing():
    torch.manual_seed(0)
    samples = Samples(toy(), "cpu")
    two = models.xmodalix({"rna": 20, "image": 204}, None, 4, n_layers=0, extra={"cycle": penalties.cycle}).eval()
    batch = samples[torch.arange(12)]
    with torch.no_grad():
        for encoder, decoder in zip(two.encoders, two.decoders, strict=True):
            name = encoder.modalities[0]
            head = decoder.heads[name].mean
            nn.init.zeros_(head.bias)
            encoder.head.weight[:4] = torch.linalg.pinv(head.weight)
            nn.init.zeros_(encoder.head.bias)
        assert float(two.losses(batch)["cycle"]) == pytest.approx(0, abs=1e-5)
        two.encoders[0].head.bias += 1
        assert float(two.losses(batch)["cycle"]) > 0.3


# --- what it is good for -------------------------------------------------------------------------------------------


def test_a_picture_is_told_from_a_profile(translated):
    samples, model, _ = translated
    test = samples.rows("test")
    x = samples[test].x["image"].numpy()
    x_hat = tasks.translate(model, samples, "rna", "image", "test")
    mean = samples[samples.rows("train")].x["image"].numpy().mean(0)
    assert 1 - ((x - x_hat) ** 2).sum() / ((x - mean) ** 2).sum() > 0.6
    z = [tasks.embed(model, samples, "test", modality=m) for m in ("rna", "image")]
    assert alignment.foscttm(*z) < 0.2


def test_classes_alone_align_data_without_pairs():
    torch.manual_seed(0)
    samples = Samples(toy(400, paired=False), "cpu", covariates=["class"])
    model = models.xmodalix(samples.n_vars, samples.shapes, 4, width=8, classes=samples.n_classes)
    fitted(samples, model, epochs=40, adversarial=3.0, **{"class": 30.0})
    test = samples.rows("test")
    code = samples[test].covariates["class"].numpy()
    z = {m: tasks.embed(model, samples, "test", modality=m) for m in ("rna", "image")}
    has = {m: np.isfinite(v[:, 0]) for m, v in z.items()}
    found = alignment.label_transfer(
        z["rna"][has["rna"]], code[has["rna"]], z["image"][has["image"]], code[has["image"]]
    )
    assert found["accuracy"] > 0.7


def test_translations_are_deterministic_and_uncertainty_comes_from_draws(translated):
    samples, model, _ = translated
    first, second = (tasks.translate(model, samples, "rna", "image") for _ in range(2))
    np.testing.assert_array_equal(first, second)
    sd = tasks.uncertainty(model, samples, "rna", "image", "test", draws=20)
    np.testing.assert_array_equal(sd, tasks.uncertainty(model, samples, "rna", "image", "test", draws=20))
    assert sd.shape == (48, 204) and (sd >= 0).all() and sd.max() > 0
    with pytest.raises(ValueError, match="two or more"):
        tasks.uncertainty(model, samples, "rna", "image", draws=1)


def test_rows_without_the_source_are_nan(translated):
    _, model, _ = translated
    mdata = toy(20, paired=False)
    found = tasks.translate(model, mdata, "rna", "image")
    has = mdata.obs_names.isin(mdata["rna"].obs_names)
    assert np.isfinite(found[has]).all() and np.isnan(found[~has]).all()
    assert np.isnan(tasks.embed(model, mdata, modality="rna")[~has]).all()


def test_data_without_the_target_can_be_translated(translated):
    _, model, _ = translated
    whole = toy()
    told = tasks.translate(model, only(whole, "rna"), "rna", "image")
    np.testing.assert_allclose(told, tasks.translate(model, whole, "rna", "image"), atol=1e-5)


def test_a_split_in_which_nobody_has_the_target(translated):
    _, model, _ = translated
    mdata = toy()
    part = mudata.MuData({"rna": mdata["rna"], "image": mdata["image"][:0].copy()})
    assert np.isfinite(tasks.translate(model, part, "rna", "image")).all()
    filled = tasks.impute(model, part)["image"]
    assert filled.obs["imputed"].all() and filled.X.min() >= 0 and filled.X.max() <= 1


def test_a_batch_without_the_modality_teaches_nothing():
    mdata = toy(120)
    part = mudata.MuData({"rna": mdata["rna"], "image": mdata["image"][:9].copy()})
    part.obs["split"] = mdata.obs["split"]
    samples = Samples(part, "cpu")
    model = models.xmodalix(samples.n_vars, samples.shapes, 4, width=4)
    training.fit(models.part(model, "image"), samples, epochs=1, batch_size=8, progress=False)


@pytest.mark.parametrize(
    "source, target, message", [("rns", "image", "data have no modality 'rns'"), ("rna", "x", "model has no")]
)
def test_unknown_modalities(translated, source, target, message):
    samples, model, _ = translated
    with pytest.raises(ValueError, match=message):
        tasks.translate(model, samples, source, target)


def test_impute_fills_what_is_missing_and_keeps_what_is_measured(translated):
    _, model, _ = translated
    mdata = toy(30)
    part = mudata.MuData({"rna": mdata["rna"], "image": mdata["image"][:20].copy()})
    full = tasks.impute(model, part)
    assert full["image"].n_obs == 30 and list(full.obs_names) == list(part.obs_names)
    np.testing.assert_array_equal(full["image"][part["image"].obs_names].X, part["image"].X)
    missing = full["image"].obs["imputed"].to_numpy()
    assert missing.sum() == 10 and "imputed" not in full["rna"].obs
    expected = tasks.translate(model, part, "rna", "image")[missing]
    np.testing.assert_allclose(full["image"].X[missing], expected.clip(0, 1), atol=1e-5)  # pictures stay pictures
    assert tuple(full["image"].uns["image_shape"]) == (12, 17, 1)


def test_counts_translate_on_the_scale_of_their_library():
    torch.manual_seed(0)
    samples = Samples(toy(counts=True), "cpu")
    model = models.xmodalix(samples.n_vars, samples.shapes, 3, width=4, heads={"rna": NegativeBinomialHead})
    fitted(samples, model, epochs=3)
    found = tasks.translate(model, samples, "image", "rna", "test")
    np.testing.assert_allclose(found.sum(1), samples[samples.rows("test")].library["rna"][:, 0], rtol=1e-4)
    mdata = toy(counts=True)
    part = mudata.MuData({"rna": mdata["rna"][:20].copy(), "image": mdata["image"]})
    part.uns["dataset"] = mdata.uns["dataset"]
    np.testing.assert_allclose(tasks.translate(model, part, "image", "rna")[20:].sum(1), 1e4, rtol=1e-4)


def test_wanted_shares_of_the_loss_are_reached():
    torch.manual_seed(0)
    samples = Samples(toy(), "cpu")
    model = models.xmodalix(samples.n_vars, samples.shapes, 4, width=4)
    shares = balance.Shares(
        {"nll": 0.7, "kl": 0.05, "paired": 0.2, "adversarial": 0.05}, anneal={"kl": "logistic-early"}
    )
    history = training.fit(model, samples, weights=shares, epochs=40, batch_size=48, lr=3e-3, progress=False)
    found = (
        balance.contributions(history).query("split == 'train' and 15 <= epoch <= 20").groupby("group")["share"].mean()
    )
    assert found["nll"] == pytest.approx(0.7, abs=0.15)
    assert found["paired"] == pytest.approx(0.2, abs=0.1)


def test_noise_regularises_like_a_ridge_penalty():
    encoder = DenseEncoder({"rna": 6}, 2, [], noise=0.5)
    batch = Samples(only(toy(), "rna"), "cpu")[torch.arange(6)]
    batch = replace(batch, x={**batch.x, "rna": batch.x["rna"][:, :6]})
    with torch.no_grad():
        clean = encoder.eval()(batch).mean
        draws = torch.stack([encoder.train()(batch).mean for _ in range(4000)])
        added = 0.25 * encoder.head.weight[:2].square().sum(1)  # noise² ‖w‖²: what the penalty charges
    torch.testing.assert_close(draws.var(0).mean(0), added, rtol=0.05, atol=0)
    torch.testing.assert_close(draws.mean(0), clean, atol=0.05, rtol=0)


# --- data that cannot be joined ------------------------------------------------------------------------------------


def test_no_common_sample_and_no_class():
    samples = Samples(toy(paired=False), "cpu")
    model = models.xmodalix(samples.n_vars, samples.shapes, 4, width=4)
    with pytest.raises(ValueError, match=r"rna and image share no sample.*class labels"):
        fitted(samples, model, epochs=1)


def test_a_class_that_one_modality_alone_has():
    mdata = toy(paired=False)
    pictures = mdata.obs_names.isin(mdata["image"].obs_names)
    mdata.obs.loc[pictures & (mdata.obs["class"] == "low"), "class"] = np.nan
    samples = Samples(mdata, "cpu", covariates=["class"])
    model = models.xmodalix(samples.n_vars, samples.shapes, 4, width=4, classes=samples.n_classes)
    with pytest.raises(ValueError, match="'low' only in rna"):
        fitted(samples, model, epochs=1)


def test_a_third_modality_must_be_linked_too():
    mdata = toy(60)
    alone = AnnData(np.random.default_rng(0).random((30, 9)).astype(np.float32))
    alone.obs_names = [f"other{i}" for i in range(30)]
    three = mudata.MuData({"rna": mdata["rna"], "image": mdata["image"], "protein": alone})
    samples = Samples(three, "cpu")
    with pytest.raises(ValueError, match="rna with image and protein share no sample"):
        fitted(samples, models.xmodalix(samples.n_vars, samples.shapes, 4, width=4), epochs=1)


def test_class_centres_need_the_column():
    samples = Samples(toy(), "cpu")
    model = models.xmodalix(samples.n_vars, samples.shapes, 4, width=4, classes={"class": 3})
    with pytest.raises(ValueError, match=r"covariates=\['class'\]"):
        fitted(samples, model, epochs=1)


def test_unknown_names_in_options():
    with pytest.raises(ValueError, match="no modality 'imge'; did you mean 'image'"):
        models.xmodalix({"rna": 20, "image": 204}, {"imge": (12, 17, 1)})


def test_pairs_need_no_classes():
    samples = Samples(toy(), "cpu")
    assert check_linked(samples, [["rna"], ["image"]], {}) is None


def test_image_encoder_can_be_a_point():
    encoder = ImageEncoder("image", (12, 17, 1), 3, 4, stochastic=False)
    q = encoder(Samples(toy(), "cpu")[torch.arange(5)])
    assert q.mean.shape == (5, 3) and q.logvar is None
