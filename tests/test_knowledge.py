"""What latents know: planted labels and batches are found, noise is at chance; rare regions; null batches."""

import numpy as np
import pandas as pd
import pytest

from helpers import knowledge

LOGISTIC = {"logistic": knowledge.logistic}


@pytest.fixture(scope="module")
def tissue():
    """600 spots of three regions in four sections; one latent knows the region, one the section, one nothing."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"region": rng.choice(["a", "b", "c"], 600), "section": np.repeat(["s1", "s2", "s3", "s4"], 150)}
    )

    def latent(column):
        return pd.get_dummies(obs[column]).to_numpy(float) * 8 + rng.normal(size=(600, obs[column].nunique()))

    return obs, {"shared": latent("region"), "batch": latent("section"), "noise": rng.normal(size=(600, 5))}


def told(table):
    return knowledge.summary(table).set_index(["latent", "target", "classifier"]).sort_index()


# --- what each latent knows ------------------------------------------------------------------------------------------


def test_latents_know_what_was_planted_and_no_more(tissue):
    table = told(knowledge.knows(tissue[1], tissue[0], ["region", "section"]))
    assert set(table.index.get_level_values("classifier")) == {"logistic", "svm"}
    for latent, target in (("shared", "region"), ("batch", "section")):
        assert (table.loc[(latent, target), "balanced_accuracy"] > 0.98).all()
    for latent, target in (("shared", "section"), ("batch", "region"), ("noise", "region"), ("noise", "section")):
        assert (table.loc[(latent, target), "over_chance"].abs() < 0.1).all()
    assert (abs(table["permuted"] - table["chance"]) < 0.12).all()
    chance = table["chance"].groupby("target").unique()
    assert chance["region"].tolist() == pytest.approx([1 / 3]) and chance["section"].tolist() == [0.25]


def test_the_svm_sees_what_a_line_cannot(tissue):
    rng = np.random.default_rng(1)
    z = rng.normal(size=(600, 2))
    inside = pd.DataFrame({"batch": np.where((z**2).sum(1) < 1.4, "in", "out")})
    table = told(knowledge.knows({"z": z}, inside, ["batch"]))["over_chance"].droplevel(["latent", "target"])
    assert table["logistic"] < 0.25 and table["svm"] > 0.8


def test_batch_given_region_is_not_told_from_composition():
    """Two sections of different composition, one latent that knows nothing but the region."""
    rng = np.random.default_rng(0)
    section = np.repeat(["s1", "s2"], 300)
    region = np.where(rng.random(600) < np.where(section == "s1", 0.85, 0.15), "a", "b")
    obs, z = (
        pd.DataFrame({"region": region, "section": section}),
        (region == "a")[:, None] + rng.normal(size=(600, 3)) / 9,
    )
    plain = told(knowledge.knows({"z": z}, obs, ["section"], classifiers=LOGISTIC))
    given = told(knowledge.knows({"z": z}, obs, ["section"], within="region", classifiers=LOGISTIC))
    assert plain["over_chance"].item() > 0.6 and abs(given["over_chance"].item()) < 0.12
    assert given["n_parts"].item() == 2 and plain["n_parts"].item() == 1
    both = knowledge.knows({"z": z}, obs, ["region", "section"], within="region", classifiers=LOGISTIC)
    assert set(both[both["target"] == "region"]["within"]) == {"all"}  # the region itself is told everywhere
    assert set(both[both["target"] == "section"]["within"]) == {"a", "b"}


def test_missing_rows_and_rare_classes_are_counted(tissue):
    obs, latents = tissue[0].copy(), tissue[1]["shared"].copy()
    latents[:100], obs.loc[590:, "region"], obs.loc[100:102, "region"] = np.nan, None, "tiny"
    table = knowledge.knows({"shared": latents}, obs, ["region"], classifiers=LOGISTIC)
    assert table[["n_obs", "n_missing", "n_rare", "n_classes"]].drop_duplicates().to_numpy().tolist() == [
        [487, 110, 3, 3]
    ]
    few = knowledge.knows({"shared": latents}, obs, ["region"], classifiers=LOGISTIC, n_most=200)
    assert (few["n_obs"] + few["n_rare"] == 200).all()


def test_over_chance_and_fold_means_by_hand():
    rows = [
        ("z", "y", w, "logistic", f, b, 0.5, 0.5)
        for w, f, b in (("u", 0, 1), ("v", 0, 0.5), ("u", 1, 0.5), ("v", 1, 0.5))
    ]
    columns = ["latent", "target", "within", "classifier", "fold", "balanced_accuracy", "permuted", "chance"]
    table = pd.DataFrame(rows, columns=columns).assign(n_obs=10, n_missing=1)
    table["over_chance"] = (table["balanced_accuracy"] - 0.5) / 0.5
    row = knowledge.summary(table).iloc[0]
    assert row["balanced_accuracy"] == 0.625 and row["over_chance"] == 0.25
    assert row["over_chance sd"] == pytest.approx(np.std([0.5, 0], ddof=1))
    assert row["n_parts"] == 2 and row["n_obs"] == 20 and row["n_missing"] == 1


def test_knows_is_deterministic_and_zeros_are_at_chance(tissue):
    given = {"noise": tissue[1]["noise"], "zeros": np.zeros((600, 3))}
    first, again = (knowledge.knows(given, tissue[0], ["section"], seed=1) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    assert (first.query("latent == 'zeros'")["balanced_accuracy"] == 0.25).all()
    assert (
        knowledge.knows(given, tissue[0], ["section"], seed=2)["balanced_accuracy"] != first["balanced_accuracy"]
    ).any()


def test_forests_are_readers_too(tissue):
    found = knowledge.knows(
        {"shared": tissue[1]["shared"]}, tissue[0], ["region"], classifiers={"forest": knowledge.forest}, n_folds=2
    )
    assert (found["balanced_accuracy"] > 0.98).all()


def test_knows_says_what_is_wrong_and_what_it_leaves_out(tissue):
    obs, latents = tissue
    with pytest.raises(ValueError, match="latent 'z' has NaN in every row"):
        knowledge.knows({"z": np.full((600, 2), np.nan)}, obs, ["region"])
    with pytest.raises(ValueError, match=r"latent 'z' has shape \(5, 2\): it must be \[600, n_latent\]"):
        knowledge.knows({"z": np.zeros((5, 2))}, obs, ["region"])
    with pytest.raises(ValueError, match="no column 'batch'"):
        knowledge.knows(latents, obs, ["batch"])
    with pytest.raises(ValueError, match="all of section 's1', two are needed"):
        knowledge.knows(latents, obs.assign(section="s1"), ["section"])
    with pytest.raises(ValueError, match="no two classes of 'spot' have 4 spots each"):
        knowledge.knows(latents, obs.assign(spot=np.arange(600)), ["spot"])
    one = np.where((obs["section"] == "s1").to_numpy()[:, None], latents["noise"], np.nan)
    with pytest.warns(UserWarning, match="left out: the spots that latent 'one' has are all of section 's1'"):
        found = knowledge.knows({"one": one, "noise": latents["noise"]}, obs, ["section"], classifiers=LOGISTIC)
    assert set(found["latent"]) == {"noise"}


# --- a rare region ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rare_one():
    """14 rare spots in section s1: apart in one embedding, melted into the rest in the other."""
    rng = np.random.default_rng(3)
    obs = pd.DataFrame({"region": ["other"] * 300, "section": np.repeat(["s1", "s2", "s3"], 100)})
    obs.loc[:13, "region"] = "rare"
    melted = rng.normal(size=(300, 4))
    return obs, {"apart": melted + 9.0 * (obs["region"] == "rare").to_numpy()[:, None], "melted": melted}


def test_a_rare_region_is_apart_or_it_is_not(rare_one):
    table = knowledge.rare(rare_one[1], rare_one[0], "region", "rare", "section").set_index(["embedding", "where"])
    assert (table.loc["apart", ["purity", "auc"]] == 1).all(axis=None)
    assert (table.loc["melted", "purity"] < 0.4).all() and (table.loc["melted", "auc"].between(0.2, 0.8)).all()
    assert table["n_others"].tolist() == [86, 286, 86, 286] and set(table["n_rare"]) == {14} and set(table["k"]) == {13}
    assert table.loc[("apart", "own section"), "chance"] == pytest.approx(13 / 99)


def test_purity_by_hand():
    z = np.array([[0.0], [1], [2.1], [10], [11], [12], [13], [30]])
    is_rare = np.array([1, 1, 0, 1, 1, 0, 0, 0], bool)
    found = knowledge.separation(z, is_rare, k=1, n_folds=2)
    assert found["purity"] == 1.0 and found["k"] == 1
    assert knowledge.separation(z, is_rare, k=2, n_folds=2)["purity"] == pytest.approx(0.5)
    assert knowledge.separation(np.zeros((40, 2)), np.arange(40) < 8)["auc"] == 0.5
    same = np.zeros((20, 2))
    assert 0 <= knowledge.separation(same, np.arange(20) < 5)["purity"] <= 1


def test_rare_says_what_is_wrong(rare_one):
    obs, embeddings = rare_one
    with pytest.raises(ValueError, match="there is no 'tumour' in 'region'; there are: 'rare', 'other'"):
        knowledge.rare(embeddings, obs, "region", "tumour", "section")
    lost = np.where(np.arange(300)[:, None] < 12, np.nan, embeddings["apart"])
    with pytest.raises(ValueError, match="'z' has 2 spots of 'rare' and 86 others in own section: 4 each"):
        knowledge.rare({"z": lost}, obs, "region", "rare", "section")
    with pytest.raises(ValueError, match="0 others in own section"):
        knowledge.rare(embeddings, obs.assign(section=obs["region"]), "region", "rare", "section")


# --- a batch that is none --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(4)
    z = rng.normal(size=(200, 5))
    is_copy, of = np.r_[np.zeros(200, bool), np.ones(120, bool)], rng.permutation(200)[:120]
    return z, is_copy, of


def test_exact_copies_cannot_be_told(pairs):
    z, is_copy, of = pairs
    found = knowledge.null_batch(np.vstack([z, z[of]]), is_copy, of)
    assert found["distance"] == found["ratio"] == 0 and found["own"] == 1
    assert found["nearest"] == found["logistic"] == 0.5 and found["n_pairs"] == 120
    from scipy.spatial.distance import pdist

    assert found["spread"] == pytest.approx(pdist(z[of]).mean())


def test_noise_leaves_copies_near_and_a_shift_gives_them_away(pairs):
    z, is_copy, of = pairs
    rng = np.random.default_rng(5)
    near = knowledge.null_batch(np.vstack([z, z[of] + 0.1 * rng.normal(size=(120, 5))]), is_copy, of)
    assert 0 < near["ratio"] < 0.1 and near["own"] > 0.95 and abs(near["nearest"] - 0.5) < 0.1
    assert abs(near["logistic"] - 0.5) < 0.1
    far = knowledge.null_batch(np.vstack([z, z[of] + 3]), is_copy, of)
    assert far["nearest"] > 0.95 and far["logistic"] > 0.95
    assert far["distance"] == pytest.approx(3 * 5**0.5)
    drawn = knowledge.null_batch(np.vstack([z, rng.normal(size=(120, 5))]), is_copy, of)
    assert drawn["ratio"] == pytest.approx(1, abs=0.1) and drawn["own"] < 0.05
    zeros = knowledge.null_batch(np.zeros((320, 2)), is_copy, of)
    assert np.isnan(zeros["ratio"]) and zeros["own"] == pytest.approx(zeros["own_chance"]) == pytest.approx(1 / 120)


def test_twins_are_read_from_names():
    obs = pd.DataFrame({"twin": ["", "b", "c", "c", "b"]}, index=["a", "b", "c", "c again", "b again"])
    is_copy, of = knowledge.twins(obs)
    assert is_copy.tolist() == [False, False, False, True, True] and of.tolist() == [2, 1]
    with pytest.raises(ValueError, match="no spot is a copy"):
        knowledge.twins(obs[:3])
    with pytest.raises(ValueError, match="originals that are not in the data: 'c'"):
        knowledge.twins(obs.drop(index="c"))
    with pytest.raises(ValueError, match="no column 'twin'"):
        knowledge.twins(obs.rename(columns={"twin": "x"}))


def test_null_batch_says_what_is_wrong(pairs):
    z, is_copy, of = pairs
    both = np.vstack([z, z[of]])
    with pytest.raises(ValueError, match="of 3 originals: give one original per copy"):
        knowledge.null_batch(both, is_copy, of[:3])
    with pytest.raises(ValueError, match="a row that is no copy itself"):
        knowledge.null_batch(both, is_copy, np.arange(200, 320))
    with pytest.raises(ValueError, match="NaN in the embedding"):
        knowledge.null_batch(np.where(both > 2, np.nan, both), is_copy, of)
    with pytest.raises(ValueError, match="has 3 pairs: 8 or more"):
        knowledge.null_batch(both[:203], is_copy[:203], of[:3])
