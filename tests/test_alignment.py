"""Alignment scores against naive loops, and what they must say of perfect, random and collapsed embeddings."""

import numpy as np
import pandas as pd
import pytest

from helpers import alignment


def naive_foscttm(z_a, z_b):
    shares = []
    for one, other in ((z_a, z_b), (z_b, z_a)):
        for i, z in enumerate(one):
            match = np.linalg.norm(z - other[i])
            others = [np.linalg.norm(z - row) for j, row in enumerate(other) if j != i]
            shares.append(np.mean([(d < match) + 0.5 * (d == match) for d in others]))
    return np.mean(shares)


@pytest.mark.parametrize("chunk", [1, 700, 4_000_000])
def test_foscttm_is_the_naive_loop_in_blocks_of_any_size(chunk, monkeypatch):
    monkeypatch.setattr(alignment, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    z_a = rng.normal(size=(37, 3))
    z_b = z_a + 0.7 * rng.normal(size=(37, 3))
    z_b[5], z_b[6] = z_b[4], z_b[4]  # ties
    assert alignment.foscttm(z_a, z_b) == pytest.approx(naive_foscttm(z_a, z_b))
    assert alignment.foscttm(z_a, z_b) == pytest.approx(alignment.foscttm(z_b, z_a))


def test_foscttm_knows_perfect_chance_worst_and_collapse():
    rng = np.random.default_rng(1)
    z, other = rng.normal(size=(2, 400, 4))
    assert alignment.foscttm(z, z) == 0
    assert alignment.foscttm(z, other) == pytest.approx(0.5, abs=0.03)
    assert alignment.foscttm(np.ones((50, 4)), np.ones((50, 4))) == 0.5  # saying nothing is no alignment
    ends = np.array([[0.0], [1.0]])
    assert alignment.foscttm(ends, ends[::-1]) == 1
    noise = [alignment.foscttm(z, z + s * other) for s in (0.1, 0.5, 2.0)]
    assert noise == sorted(noise) and noise[0] < 0.01 < noise[-1] < 0.5


def test_foscttm_says_what_does_not_fit():
    z = np.random.default_rng(2).normal(size=(9, 2))
    with pytest.raises(ValueError, match=r"z_a has shape \(9, 2\) and z_b \(8, 2\)"):
        alignment.foscttm(z, z[1:])
    with pytest.raises(ValueError, match="the same two or more samples"):
        alignment.foscttm(z[:1], z[:1])
    with pytest.raises(ValueError, match=r"z_b, of shape \(9, 2\), must be finite"):
        alignment.foscttm(z, np.where(z > 0, z, np.nan))


@pytest.fixture
def classes():
    rng = np.random.default_rng(3)
    centre, y = np.array([[0.0, 0], [6, 0], [0, 6]]), np.repeat([0, 1, 2], [40, 30, 20])
    return centre[y] + rng.normal(size=(90, 2)), centre[y] + rng.normal(size=(90, 2)), np.array(list("abc"))[y]


def test_labels_cross_between_aligned_modalities_only(classes):
    z_from, z_to, y = classes
    good = alignment.label_transfer(z_from, y, z_to, y)
    assert good.keys() == {"accuracy", "balanced_accuracy", "F1"} and min(good.values()) > 0.97
    turned = alignment.label_transfer(z_from, y, z_to[:, ::-1], y)  # b and c lie where the other should
    assert turned["accuracy"] == pytest.approx(4 / 9, abs=0.03)
    assert turned["balanced_accuracy"] == pytest.approx(1 / 3, abs=0.03)
    assert turned["F1"] == pytest.approx(4 / 9, abs=0.03)


def test_unknown_labels_are_left_out_and_unknown_classes_are_wrong(classes):
    z_from, z_to, y = classes
    holes = np.where(np.arange(90) % 9 == 0, None, y)
    assert alignment.label_transfer(z_from, holes, z_to, holes)["accuracy"] > 0.97
    without = y != "c"
    found = alignment.label_transfer(z_from[without], y[without], z_to, y)
    assert found["accuracy"] <= 70 / 90 and found["balanced_accuracy"] <= 2 / 3
    assert alignment.label_transfer(z_from[:2], ["a", "b"], z_to[:50], y[:50], k=5)["accuracy"] <= 1  # k is cut


def test_label_transfer_says_what_does_not_fit(classes):
    z_from, z_to, y = classes
    with pytest.raises(ValueError, match=r"share no class \('a', 'b', 'c' against 'x'\)"):
        alignment.label_transfer(z_from, y, z_to, ["x"] * 90)
    with pytest.raises(ValueError, match="z_to has 90 samples and y_to 89 labels"):
        alignment.label_transfer(z_from, y, z_to, y[1:])
    with pytest.raises(ValueError, match="2 and 1 dimensions"):
        alignment.label_transfer(z_from, y, z_to[:, :1], y)
    with pytest.raises(ValueError, match="y_from holds no label"):
        alignment.label_transfer(z_from, [None] * 90, z_to, y)


def test_modalities_apart_are_told_and_mixed_ones_are_not():
    rng = np.random.default_rng(4)
    z = {name: rng.normal(size=(n, 3)) for name, n in {"rna": 300, "protein": 200, "image": 400}.items()}
    assert alignment.modality_accuracy(z) == pytest.approx(1 / 3, abs=0.05)
    assert alignment.modality_accuracy(z | {"image": z["image"] + 8}) == pytest.approx(2 / 3, abs=0.05)
    assert alignment.modality_accuracy({"rna": z["rna"], "image": z["image"] + 9}) > 0.99
    assert alignment.modality_accuracy(z, seed=1) == alignment.modality_accuracy(z, seed=1)


def test_pairs_that_coincide_are_at_chance_not_below():
    """Few samples in many dimensions: folds that part a pair would be told wrong, and score far below one half."""
    z = np.random.default_rng(5).normal(size=(40, 30))
    assert alignment.modality_accuracy({"rna": z, "image": z}) == 0.5
    near = alignment.modality_accuracy({"rna": z, "image": z + 0.01 * np.random.default_rng(6).normal(size=z.shape)})
    assert 0.25 < near < 0.75


def test_folds_are_even_and_shared_by_a_row():
    z = {"a": np.zeros((23, 2)), "b": np.zeros((12, 2))}
    _, modality, fold = alignment._pooled(z, folds=5, seed=0)
    assert (fold[modality == 0][:12] == fold[modality == 1]).all()
    for m in (0, 1):
        counts = np.bincount(fold[modality == m], minlength=5)
        assert counts.min() >= 2 and np.ptp(counts) <= 1


def test_modality_accuracy_says_what_does_not_fit():
    z = np.random.default_rng(7).normal(size=(20, 2))
    with pytest.raises(ValueError, match="two or more modalities of equal n_latent"):
        alignment.modality_accuracy({"rna": z})
    with pytest.raises(ValueError, match="equal n_latent"):
        alignment.modality_accuracy({"rna": z, "image": z[:, :1]})
    with pytest.raises(ValueError, match="'image' is too few"):
        alignment.modality_accuracy({"rna": z, "image": z[:3]})


def test_centres_are_medians_of_classes_in_their_own_order():
    z = np.array([[0.0, 0], [1, 1], [8, 2], [5, 5], [7, 7]])
    y = pd.Series(
        pd.Categorical(["late", "late", "late", "early", None], ["early", "late", "never"]), index=list("vwxyz")
    )
    found = alignment.centres(z, y)
    pd.testing.assert_index_equal(pd.Index(found.index.astype(str)), pd.Index(["early", "late"]), check_names=False)
    np.testing.assert_array_equal(found, [[5, 5], [1, 1]])
    np.testing.assert_array_equal(alignment.centres(z, y, how="mean").loc["late"], [3, 1])
    assert list(found.columns) == ["z1", "z2"]
    with pytest.raises(ValueError, match="5 samples have 4 labels"):
        alignment.centres(z, y[:4])
    with pytest.raises(ValueError, match="no sample has a label"):
        alignment.centres(z, [None] * 5)
