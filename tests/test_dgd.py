"""Models without an encoder: learned codes, their optimiser, the recipes, and codes for new samples."""

import warnings
from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from conftest import build
from sklearn.metrics import adjusted_rand_score

from helpers import controls, inference, models, tasks, training
from helpers.batches import Batch, Samples
from helpers.decoders import GaussianHead
from helpers.encoders import LearnedCodes, RowAdam
from helpers.layers import LinkedLinear
from helpers.likelihoods import Gaussian
from helpers.models.dgd import learned, start_at
from helpers.priors import GaussianMixture


def batch_of(x, index=None):
    """A batch of one modality "rna"."""
    n = len(x)
    index = torch.arange(n) if index is None else index
    return Batch({"rna": x}, {"rna": torch.ones(n, dtype=torch.bool)}, {}, index)


def planted(n=400, k=4, seed=1, counts=False):
    """Samples of `k` classes in a three-dimensional latent space, seen through a bent map; and their classes."""
    rng = np.random.default_rng(seed)
    own, centre = rng.integers(k, size=n), 3 * rng.normal(size=(k, 3))
    z = centre[own] + rng.normal(size=(n, 3))
    signal = np.tanh(z @ rng.normal(size=(3, 20)) / 3) @ rng.normal(size=(20, 50))
    if counts:
        share = np.exp(signal / 2)
        depth = rng.lognormal(7, 0.3, size=(n, 1))
        x = rng.poisson(depth * share / share.sum(1, keepdims=True))
        return build({"rna": sp.csr_matrix(x)}, kinds={"rna": "counts"}), own
    x = signal + 0.3 * rng.normal(size=signal.shape)
    x = (x - x.mean(0)) / x.std(0)
    mdata = build({"rna": x[:, :30], "protein": x[:, 30:]})
    mdata.obs["kind"] = [f"c{c}" if i % 5 == 0 else None for i, c in enumerate(own)]  # one in five is known
    return mdata, own


def pca_codes(samples, n_latent, transform=lambda x: x):
    """Codes of all samples from a PCA of the train split."""
    x = np.hstack([np.asarray(transform(samples[torch.arange(len(samples))].x[m])) for m in samples.modalities])
    return controls.pca(x[samples.rows("train").numpy()], n_latent).embed(x)


def fitted(samples, seed=0, epochs=40, **options):
    """A DGD of four components, started at a PCA and trained on the train split."""
    torch.manual_seed(seed)
    train = samples.rows("train")
    model = models.dgd(samples.n_vars, len(samples), 5, 4, n_train=len(train), **options)
    start_at(model, pca_codes(samples, 5), train, seed=seed)
    history = training.fit(model, samples, epochs=epochs, batch_size=64, lr=5e-3, weight_decay=1e-4, seed=seed)
    return model, history


@pytest.fixture(scope="module")
def trained():
    mdata, own = planted()
    samples = Samples(mdata, "cpu")
    return mdata, own, samples, *fitted(samples)


# --- codes and their optimiser -------------------------------------------------------------------------------------


def test_codes_start_at_zero_and_are_points():
    codes = LearnedCodes(["rna"], 10, 3)
    q = codes(batch_of(torch.randn(4, 5), torch.tensor([1, 3, 5, 9])))
    assert q.logvar is None and q.mean.shape == (4, 3) and not q.mean.any()
    wide = LearnedCodes(["rna"], 10, 3, stochastic=True)(batch_of(torch.randn(10, 5)))
    assert wide.mean.shape == wide.logvar.shape == (10, 3) and not wide.logvar.any()


def test_row_by_row_is_one_adam_step_for_all_codes_per_epoch():
    """Three epochs in shuffled batches end where full-data steps of torch's own Adam end."""
    target, rows = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), LearnedCodes(["rna"], 12, 3)
    whole = torch.nn.Parameter(torch.zeros(12, 3))
    ours = RowAdam(rows.parameters(), lr=0.1, betas=(0.5, 0.7), weight_decay=0.1)
    theirs = torch.optim.Adam([whole], lr=0.1, betas=(0.5, 0.7))
    for _ in range(3):
        for index in torch.randperm(12).split(5):
            ours.zero_grad()
            (rows(batch_of(target[index], index)).mean - target[index]).pow(4).sum().backward()
            ours.step()
        theirs.zero_grad()
        (whole - target).pow(4).sum().backward()
        theirs.step()
    torch.testing.assert_close(rows.table.weight, whole)


def test_rows_outside_the_batch_stay_and_dense_parameters_follow_adamw():
    codes, layer = LearnedCodes(["rna"], 8, 2), torch.nn.Linear(2, 2)
    twin = torch.nn.Linear(2, 2)
    twin.load_state_dict(layer.state_dict())
    ours = RowAdam([*codes.parameters(), *layer.parameters()], lr=0.1, fused=True)
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.1, fused=True)
    for index in (torch.tensor([0, 1]), torch.tensor([2, 3])):
        before = codes.table.weight.detach().clone()
        for optimiser in (ours, theirs):
            optimiser.zero_grad()
        z = codes(batch_of(torch.ones(2, 4), index)).mean
        layer(z).sum().backward()
        twin(z.detach()).sum().backward()
        ours.step()
        theirs.step()
        moved = (codes.table.weight != before).any(1).nonzero()[:, 0]
        assert torch.equal(moved, index)
    torch.testing.assert_close(layer.weight, twin.weight)


def test_codes_know_whose_they_are():
    codes, x = LearnedCodes(["rna"], 6, 2).eval(), torch.randn(4, 30)
    with torch.no_grad():
        assert not codes(batch_of(-x)).mean.any()  # nothing is learned: any samples will do
    codes(batch_of(x)).mean.sum().backward()
    with torch.no_grad():
        codes(batch_of(x))
        with pytest.raises(ValueError, match=r"1 of 4 samples have no code .* \(rows '2'\): inference.infer"):
            codes(batch_of(torch.cat([x[:2], x[2:3] + 0.1, x[3:]])))
        with pytest.raises(ValueError, match=r"2 of 2 samples have no code"):
            codes(batch_of(x[:2], torch.tensor([4, 5])))
        with pytest.raises(ValueError, match="codes of 6 samples, and row 9 was asked for"):
            codes(batch_of(x[:1], torch.tensor([9])))
    with pytest.raises(ValueError, match=r"codes are \[6, 2\], got \[6, 3\]"):
        codes.start_at(torch.zeros(6, 3))


# --- training ------------------------------------------------------------------------------------------------------


def test_the_terms_are_the_negative_log_posterior(trained):
    """Summed over the train split, the loss is −log p(x | z) − log p(z | φ) − log p(φ), the last counted once."""
    _, _, samples, model, _ = trained
    rows = samples.rows("train")
    with torch.no_grad():
        batch = samples[rows]
        terms = model.losses(batch)
        z = model.encoders[0](batch).mean
        p = model.decode(z)
        joint = sum(p[m].log_prob(batch.x[m]).sum() for m in p) + model.prior.log_prob(z).sum()
        joint = joint + model.prior.log_prior()
    assert set(terms) == {"nll/rna", "nll/protein", "prior/codes", "prior/mixture"}
    assert sum(terms.values()).item() * len(rows) == pytest.approx(-joint.item(), rel=1e-5)


def test_planted_classes_are_found_again_whatever_the_seed(trained):
    _, own, samples, first, history = trained
    train = samples.rows("train").numpy()
    second, _ = fitted(samples, seed=1)
    for model in (first, second):
        assert adjusted_rand_score(own[train], tasks.cluster(model, samples, "train")) > 0.9
    total = history.query("split == 'valid' and term == 'total'").value
    assert total.iloc[-1] < total.iloc[0]


def test_valid_codes_are_learned_and_teach_nothing(trained):
    """Decoder and mixture are the same, to the bit, with a valid split and without one; its codes still move."""
    mdata, _, samples, _, _ = trained
    without = Samples(mdata, "cpu")
    without.split = np.where(samples.split == "valid", "test", samples.split)
    one, two = (fitted(each, epochs=3)[0] for each in (samples, without))
    for name in ("decoders", "prior"):
        pairs = zip(getattr(one, name).parameters(), getattr(two, name).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    valid, test = samples.rows("valid"), samples.rows("test")
    assert (one.encoders[0].table.weight != two.encoders[0].table.weight)[valid].any(1).all()
    assert torch.equal(one.encoders[0].table.weight[test], two.encoders[0].table.weight[test])


def test_training_resumes_to_the_bit(trained, tmp_path):
    samples = trained[2]
    found = []
    for stops in ([6], [3, 6]):
        torch.manual_seed(0)
        model = models.dgd(samples.n_vars, len(samples), 5, 4)
        path = tmp_path / f"{len(stops)}.safetensors"
        for stop in stops:

            def watch(epoch, terms, settled, stop=stop):
                if epoch == stop and stop < 6:
                    raise KeyboardInterrupt

            options = {"checkpoint": path, "checkpoint_every": 1, "batch_size": 64, "clip_norm": 5.0}
            try:
                training.fit(model, samples, epochs=6, watch=watch, **options)
            except KeyboardInterrupt:
                model = models.dgd(samples.n_vars, len(samples), 5, 4)
        found.append(model.state_dict())
    assert all(torch.equal(found[0][k].nan_to_num(), found[1][k].nan_to_num()) for k in found[0])


def test_labels_choose_components_and_unlabelled_samples_follow(trained):
    mdata, own, _, _, _ = trained
    samples = Samples(mdata, "cpu", covariates=["kind"])
    torch.manual_seed(0)
    train = samples.rows("train")
    model = models.dgd(samples.n_vars, len(samples), 5, 4, n_train=len(train), labels="kind")
    start_at(model, pca_codes(samples, 5), train, labels=samples.covariates["kind"])
    training.fit(model, samples, epochs=40, batch_size=64, lr=5e-3)
    component, known = tasks.cluster(model, samples, "train"), samples.covariates["kind"][train].numpy() >= 0
    assert (component[known] == own[train][known]).all()  # component c is class c
    assert (component[~known] == own[train][~known]).mean() > 0.9
    model.eval()
    with torch.no_grad():  # outside training labels are not heard
        terms = model.losses(samples[train])
        z = model.encoders[0].table.weight[train]
    assert terms["prior/codes"].item() == pytest.approx(-model.prior.log_prob(z).mean().item(), rel=1e-5)


def test_only_parts_with_a_pace_are_fast_and_nothing_pulls_codes_to_zero():
    model = models.dgd({"rna": 5}, 10, 2, 3)
    slow, codes, mixture = model.parameter_groups(1e-3)
    assert {id(p) for p in slow["params"]} == {id(p) for p in model.decoders.parameters()}
    assert codes["params"] == [model.encoders[0].table.weight] and len(mixture["params"]) == 3
    for group in (codes, mixture):
        assert group["lr"] == pytest.approx(1e-2) and group["weight_decay"] == 0 and group["betas"] == (0.5, 0.7)


# --- the other recipes ---------------------------------------------------------------------------------------------


def test_the_decoder_finds_the_regulators_of_a_known_network():
    """Equation 6 of Schuster and Krogh 2021, small and without noise: more values per code than unknowns."""
    rng = np.random.default_rng(0)
    n, n_genes, n_regulators = 100, 100, 5
    links = rng.random((n_genes, n_regulators)) < 0.3
    z = rng.gamma(2.0, 0.5, size=(n, n_regulators))
    mdata = build({"rna": np.maximum(z @ (links * rng.uniform(0.2, 1, links.shape)).T, 0)}, split=(1.0, 0.0))
    samples = Samples(mdata, "cpu")

    def linked(n_in, n_out):
        return torch.nn.Sequential(LinkedLinear(links), torch.nn.ReLU())

    torch.manual_seed(0)
    heads = {"rna": partial(GaussianHead, layer=linked)}
    model = models.decoder(samples.n_vars, n, n_regulators, hidden=(), heads=heads)
    torch.nn.init.constant_(model.decoders[0].heads["rna"].mean[0].strength, 0.5)  # effects are positive
    model.encoders[0].start_at(torch.ones(n, n_regulators))  # and at zero every ReLU would be dead
    training.fit(model, samples, epochs=250, batch_size=50, lr=1e-2, weight_decay=1e-5, decay="cosine")
    found = tasks.embed(model, samples)
    r = [np.corrcoef(z[:, j], found[:, j])[0, 1] for j in range(n_regulators)]
    assert min(r) > 0.99


def test_the_variational_auto_decoder_learns_variances(trained):
    samples = trained[2]
    torch.manual_seed(0)
    model = models.vad(samples.n_vars, len(samples), 5)
    history = training.fit(model, samples, epochs=60, batch_size=64, lr=5e-3)
    end = history.query("split == 'train' and epoch == 60").set_index("term").value
    assert set(end.index) == {"nll/rna", "nll/protein", "kl", "total"} and end["kl"] > 2
    rows = samples.rows("test")
    new, batch = inference.infer(model, samples, "test"), samples[rows]
    code, search = new.encoders[0].table.weight.detach()[rows], inference.Search(new, model.likelihoods)
    assert (code[:, 5:] < -0.5).float().mean() > 0.5  # data tell where most samples lie
    with torch.no_grad():
        loss = search.loss(code, batch)
        for shift in (0.3, -0.3):  # every code is a minimum, in its means and in its log-variances
            for part in (slice(0, 5), slice(5, 10)):
                aside = code.clone()
                aside[:, part] += shift
                assert (search.loss(aside, batch) > loss).all()


def test_single_cells_are_clustered_from_raw_counts():
    mdata, own = planted(counts=True)
    samples = Samples(mdata, "cpu")
    train = samples.rows("train")
    torch.manual_seed(0)
    model = models.scdgd(samples.n_vars, len(samples), 5, 4, hidden=(30,), n_train=len(train))
    start_at(model, pca_codes(samples, 5, lambda x: torch.log1p(x / x.sum(1, keepdim=True) * 1e3)), train)
    training.fit(model, samples, epochs=30, batch_size=64, lr=5e-3)
    assert adjusted_rand_score(own[train.numpy()], tasks.cluster(model, samples, "train")) > 0.9
    test = samples.rows("test").numpy()
    new = inference.infer(model, samples, "test")
    assert adjusted_rand_score(own[test], tasks.cluster(new, samples, "test")) > 0.9
    decoded, counts = tasks.reconstruct(new, samples, "test")["rna"], mdata["rna"].X[test].toarray()
    np.testing.assert_allclose(decoded.sum(1), counts.sum(1), rtol=1e-4)


def test_pictures_have_a_decoder_of_their_own():
    rng = np.random.default_rng(0)
    mdata = build({"image": rng.random((20, 64)), "rna": rng.normal(size=(20, 6))}, split=(0.8, 0.2))
    samples = Samples(mdata, "cpu")
    model = models.dgd(samples.n_vars, 20, 3, 2, shapes={"image": (8, 8, 1)}, width=4)
    training.fit(model, samples, epochs=2, batch_size=8)
    assert len(model.decoders) == 2 and tasks.reconstruct(model, samples, "train")["image"].shape[1] == 64
    assert tasks.sample(model, 3)["image"].shape == (3, 64)


def test_recipes_have_the_published_sizes():
    model = models.scdgd({"rna": 1000}, 50)
    dense = 20 * 100 + 100 + 2 * (100 * 100 + 100) + 100 * 1000 + 1000
    assert (
        models.n_parameters(model) == 50 * 20 + (2 * 9 * 20 + 9) + dense + 1000
    )  # codes, mixture, decoder, dispersion
    assert models.dgd({"rna": 5}, 10).prior.softball.scale == 3.0 and model.prior.softball.sharpness == 1.0


def test_labels_need_their_column(trained):
    samples = trained[2]
    model = models.dgd(samples.n_vars, len(samples), 2, 4, labels="kind")
    with pytest.raises(ValueError, match=r"column 'kind': give training.fit Samples\(mdata, covariates=\['kind'\]\)"):
        training.fit(model, samples, epochs=1)


def test_a_start_needs_codes_that_differ():
    with pytest.raises(ValueError, match="must be finite and differ between samples"):
        start_at(models.dgd({"rna": 5}, 10, 2, 3), np.zeros((10, 2)))


# --- new samples ---------------------------------------------------------------------------------------------------


def test_new_codes_are_where_a_second_optimiser_ends(trained):
    """L-BFGS from the codes found gains next to nothing, and the decoder is untouched."""
    _, own, samples, model, _ = trained
    before = torch.cat([p.detach().flatten() for p in model.decoders.parameters()])
    new = inference.infer(model, samples, "test")
    rows = samples.rows("test")
    search, batch = inference.Search(new, ("rna", "protein")), samples[rows]
    z = new.encoders[0].table.weight.detach()[rows].clone().requires_grad_()
    found = search.loss(z, batch).detach()
    other = torch.optim.LBFGS([z], max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        other.zero_grad()
        loss = search.loss(z, batch).sum()
        loss.backward(inputs=[z])
        return loss

    other.step(closure)
    assert (found - search.loss(z, batch)).mean().item() < 5e-3
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in model.decoders.parameters()]))
    assert adjusted_rand_score(own[rows.numpy()], tasks.cluster(new, samples, "test")) > 0.9


class TwoValleys(torch.nn.Module):
    """z [batch, 1] -> a value whose squared error from 0 has a shallow valley at −1.2 and its minimum at 1.6."""

    def __init__(self):
        super().__init__()
        self.heads = torch.nn.ModuleDict({"rna": GaussianHead(1, 1)})

    def forward(self, z, library):
        return {"rna": Gaussian(torch.where(z < 0, 0.7 + 0.5 * (z + 1.2) ** 2, 1.5 * (z - 1.6)))}


def test_more_starts_find_the_deeper_valley():
    """The component that explains a sample best at its mean need not lead to the best code."""
    prior = GaussianMixture(1, 2, "fixed", sd=10.0)
    prior.mean.data = torch.tensor([[-1.0], [1.0]])
    model = learned(LearnedCodes(["rna"], 3, 1), prior, [TwoValleys()], {})
    data = build({"rna": np.zeros((3, 1))})
    np.testing.assert_allclose(inference.codes(model, data), -1.2, atol=0.1)
    np.testing.assert_allclose(inference.codes(model, data, starts=2), 1.6, atol=0.1)


def test_a_split_is_added_and_the_others_keep_their_codes(trained):
    mdata, _, samples, model, _ = trained
    with pytest.raises(ValueError, match="samples have no code in this model"):
        tasks.embed(model, samples)
    new = inference.infer(model, samples, "test")
    z = tasks.embed(new, samples)
    np.testing.assert_array_equal(z[samples.rows("train").numpy()], tasks.embed(model, samples, "train"))
    np.testing.assert_array_equal(z[samples.rows("test").numpy()], inference.codes(model, samples, "test"))
    tasks.cluster(new, mdata, key="component")
    assert list(mdata.obs["component"].cat.categories) == [0, 1, 2, 3]


def test_codes_do_not_depend_on_the_batch_they_are_found_in(trained):
    _, _, samples, model, _ = trained
    small, large = (inference.codes(model, samples, "test", batch_size=n) for n in (7, 512))
    np.testing.assert_allclose(small, large, atol=2e-2)


def test_other_data_get_codes_of_their_own(trained):
    mdata, _, samples, model, _ = trained
    other = mdata[samples.rows("test").numpy()[::-1]].copy()
    with pytest.raises(ValueError, match="samples have no code"):
        tasks.embed(model, other)
    np.testing.assert_allclose(
        tasks.embed(inference.infer(model, other), other), inference.codes(model, samples, "test")[::-1], atol=2e-2
    )


def test_a_hidden_modality_does_not_enter_and_is_told_by_the_other(trained):
    mdata, _, samples, model, _ = trained
    test = samples.rows("test").numpy()
    with pytest.raises(ValueError, match="or one from other values or modalities"):
        tasks.translate(inference.infer(model, samples, "test"), samples, "rna", "protein", "test")
    new = inference.infer(model, samples, "test", modalities=["rna"])
    told = tasks.translate(new, samples, "rna", "protein", "test")
    truth = mdata["protein"].X[test]
    assert 1 - ((told - truth) ** 2).sum() / ((truth - truth.mean(0)) ** 2).sum() > 0.4
    alone = build({"rna": mdata["rna"].X[test]})
    np.testing.assert_allclose(
        inference.codes(model, alone), inference.codes(model, samples, "test", modalities=["rna"]), atol=2e-2
    )


def test_what_cannot_be_inferred_is_named(trained):
    _, _, samples, model, _ = trained
    with pytest.raises(ValueError, match="the model has encoders"):
        inference.infer(models.varix({"rna": 30}, 2), samples)
    with pytest.raises(ValueError, match=r"share no modality 'rnaa'; did you mean 'rna'\?"):
        inference.infer(model, samples, modalities=["rnaa"])
    with pytest.raises(ValueError, match="none of the model's modalities 'rna', 'protein'"):
        inference.infer(model, build({"atac": np.ones((5, 3))}))
    gaps = build({"rna": np.ones((3, 30)), "protein": np.ones((2, 20))}, names={"protein": ["s0", "s9"]})
    with pytest.raises(ValueError, match=r"1 samples have no value of rna: 's9'; leave them out"):
        inference.infer(model, gaps, modalities=["rna"])
    with pytest.raises(ValueError, match="modality 'rna' has 29 features and the model 30: prepare"):
        inference.infer(model, build({"rna": np.ones((5, 29))}))
    counted = models.scdgd({"rna": 4}, 5, 2, 2)
    with pytest.raises(ValueError, match=r"holds \d+ values below 0 .*NegativeBinomial cannot"):
        inference.infer(counted, build({"rna": -np.ones((5, 4))}))
    with pytest.raises(ValueError, match="need steps >= 1"):
        inference.infer(model, samples, "test", steps=0)
    with pytest.raises(ValueError, match="no components to cluster by"):
        tasks.cluster(models.decoder({"rna": 30}, 10), samples)
    with pytest.raises(ValueError, match="pass the MuData, without split"):
        tasks.cluster(model, samples, "train", key="component")
    with pytest.warns(UserWarning, match=r"\d+ of \d+ codes still improved by more than 0.001 nats after 3 steps"):
        inference.infer(model, samples, "test", steps=3)


def test_samples_without_a_modality_train_and_are_inferred():
    """A modality that a sample lacks enters neither its loss nor its code."""
    mdata, _ = planted(n=120)
    kept = mdata["protein"][:80].copy()
    mosaic = build(
        {"rna": mdata["rna"].X, "protein": kept.X}, names={"protein": list(kept.obs_names)}, split=(0.6, 0.2)
    )
    samples = Samples(mosaic, "cpu")
    model = models.dgd(samples.n_vars, len(samples), 3, 2)
    training.fit(model, samples, epochs=3, batch_size=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole, without = inference.codes(model, samples), inference.codes(model, samples, modalities=["rna"])
    lacking = samples.modalities["protein"].position.numpy() < 0
    np.testing.assert_allclose(whole[lacking], without[lacking], atol=2e-2)
    assert np.abs(whole - without)[~lacking].max() > 0.01


def test_a_mixture_of_one_s_own_is_used():
    given = GaussianMixture(2, 3, "isotropic")
    assert models.dgd({"rna": 5}, 10, 2, prior=given).prior is given
