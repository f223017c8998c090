"""Pictures: one layout whatever the file, resizing that is scikit-image's, and a sentence for each thing amiss."""

import contextlib
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skimage.transform
import tifffile
from PIL import Image

from helpers import checks, datasets, pictures


def noise(*shape, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def save(folder, n=4, shape=(6, 8), ending=".png", prefix="t"):
    folder.mkdir(exist_ok=True)
    for i in range(n):
        Image.fromarray(noise(*shape, seed=i)).save(folder / f"{prefix}{i}{ending}")
    return folder


@contextlib.contextmanager
def refused(*fragments, error=ValueError):
    with pytest.raises(error) as caught:
        yield
    assert "\n" not in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value)


# --- layout ---


def test_a_folder_becomes_one_modality_in_the_layout_height_width_channel(tmp_path):
    adata = pictures.read(save(tmp_path / "images", n=3, shape=(6, 8, 3)))
    assert adata.shape == (3, 6 * 8 * 3) and adata.X.dtype == np.float32
    assert list(adata.uns["image_shape"]) == [6, 8, 3] and list(adata.obs_names) == ["t0", "t1", "t2"]
    assert np.allclose(adata.X.reshape(3, 6, 8, 3)[1], noise(6, 8, 3, seed=1) / 255)
    column = adata.var_names.get_loc("pixel_2_5_1")
    assert adata.X[2, column] == np.float32(noise(6, 8, 3, seed=2)[2, 5, 1] / 255)


def test_grey_pictures_have_one_channel_and_plain_pixel_names(tmp_path):
    adata = pictures.read(save(tmp_path / "images"))
    assert list(adata.uns["image_shape"]) == [6, 8, 1]
    assert list(adata.var_names[[0, 1, 8, -1]]) == ["pixel_0_0", "pixel_0_1", "pixel_1_0", "pixel_5_7"]
    assert checks.detect_kind(adata) == "image"


def test_samples_come_in_the_order_of_their_numbers_and_other_files_are_passed_over(tmp_path):
    for name in ("t10.png", "t2.PNG", "t1.jpg", "t3.jpeg"):
        Image.fromarray(noise(6, 8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "._t1.png").write_text("what some systems leave behind")
    assert list(pictures.read(tmp_path).obs_names) == ["t1", "t2", "t3", "t10"]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int16])
def test_whole_numbers_are_divided_by_the_largest_of_their_type(tmp_path, dtype):
    x = noise(5, 7, dtype=dtype) // np.array([2], dtype) + np.array([1], dtype)
    x = np.abs(x)
    tifffile.imwrite(tmp_path / "a.tif", x)
    assert np.allclose(pictures.read(tmp_path).X[0], x.ravel() / np.iinfo(dtype).max, atol=1e-6)


def test_png_of_one_and_of_sixteen_bits_and_with_a_palette(tmp_path):
    grey, rgb = noise(6, 8, dtype=np.uint16), np.repeat(noise(6, 8)[..., None], 3, 2)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.allclose(pictures.unit(pictures.open_picture(tmp_path / "grey.png"))[..., 0], grey / 65535)
    Image.fromarray(grey > 30000).save(tmp_path / "bit.png")
    assert np.array_equal(pictures.unit(pictures.open_picture(tmp_path / "bit.png"))[..., 0], grey > 30000)
    Image.fromarray(rgb).convert("P").save(tmp_path / "palette.png")
    assert pictures.open_picture(tmp_path / "palette.png").shape == (6, 8, 3)


def test_floats_stay_as_they_are_and_must_lie_in_0_to_1(tmp_path):
    x = np.random.default_rng(0).random((5, 7)).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", x)
    assert np.array_equal(pictures.read(tmp_path).X[0], x.ravel())
    for bad, said in ((x * 300, "values from"), (x - 1, "values from -"), (np.where(x > 0.5, np.nan, x), "NaN")):
        tifffile.imwrite(tmp_path / "a.tif", bad)
        with refused("a.tif", said):
            pictures.read(tmp_path)
    with refused("negative values (down to -3)"):
        pictures.unit(np.full((2, 2, 1), -3, np.int16))


def test_tiff_with_channels_first_last_or_unnamed_becomes_channels_last(tmp_path):
    x = noise(6, 8, 3)
    tifffile.imwrite(tmp_path / "last.tif", x, photometric="rgb")
    tifffile.imwrite(tmp_path / "first.tif", np.moveaxis(x, -1, 0), photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "stack.tif", np.moveaxis(x, -1, 0), imagej=True, metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "unnamed.tif", np.moveaxis(x[..., :2], -1, 0), photometric="minisblack")
    for name in ("last", "first", "stack"):
        assert np.array_equal(pictures.open_picture(tmp_path / f"{name}.tif"), x), name
    assert np.array_equal(pictures.open_picture(tmp_path / "unnamed.tif"), x[..., :2])


def test_compressed_tiff_is_read(tmp_path):
    Image.fromarray(noise(6, 8, 3)).save(tmp_path / "a.tif", compression="tiff_lzw")
    assert np.array_equal(pictures.open_picture(tmp_path / "a.tif"), noise(6, 8, 3))


def test_channels_are_chosen_in_order(tmp_path):
    folder = save(tmp_path / "images", shape=(6, 8, 3))
    adata = pictures.read(folder, channels=[2, 0])
    assert np.array_equal(adata.X.reshape(4, 6, 8, 2)[3], (noise(6, 8, 3, seed=3) / 255)[..., [2, 0]].astype("f4"))
    for wrong in ([3], [-1], [], [0.5]):
        with refused(f"channels={wrong}", "3 channels", "from 0"):
            pictures.read(folder, channels=wrong)


# --- sizes ---


@pytest.mark.parametrize("size", [4, (9, 5), (12, 16), (3, 20), 32, (6, 8)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_all_at_once_is_scikit_image_one_by_one(size, channels):
    x = np.random.default_rng(0).random((5, 6, 8, channels)).astype(np.float32)
    found = pictures.resize(x.reshape(5, -1), (6, 8, channels), size)
    height, width = pictures.height_width(size)
    expected = [skimage.transform.resize(image, (height, width), order=1, anti_aliasing=True) for image in x]
    assert np.allclose(found.reshape(5, height, width, channels), expected, atol=1e-6)


def test_resizing_keeps_flat_pictures_flat_and_within_their_range():
    x = np.repeat(np.array([0.0, 0.3, 1.0], np.float32)[:, None], 48, 1)
    for size in (3, 50):
        found = pictures.resize(x, (6, 8, 1), size)
        assert np.allclose(found, x[:, :1], atol=1e-6) and found.min() >= 0 and found.max() <= 1


def test_resizing_down_loses_a_fine_grid_and_keeps_the_mean():
    x = np.indices((32, 32)).sum(0) % 2  # a chessboard; without smoothing it would turn into stripes
    assert np.allclose(pictures.resize(x.reshape(1, -1), (32, 32, 1), 8), 0.5, atol=0.02)


def test_no_pictures_can_be_resized_too():
    assert pictures.resize(np.zeros((0, 48), np.float32), (6, 8, 1), 4).shape == (0, 16)


def test_faulty_sizes_are_refused():
    for size in (0, -3, 2.5, (1, 2, 3), "64", ()):
        with refused("must be a whole number of pixels, or a pair (height, width)"):
            pictures.height_width(size)
    assert pictures.height_width(5) == (5, 5) and pictures.height_width([3, 4]) == (3, 4)
    with refused("pictures of 48 values do not have the shape 6 x 7 x 1"):
        pictures.resize(np.zeros((1, 48)), (6, 7, 1), 4)


def test_a_modality_is_resized_with_its_names_and_shape(tmp_path):
    adata = pictures.read(save(tmp_path / "images"))
    small = pictures.resized(adata, (3, 4))
    assert small.shape == (4, 12) and list(small.uns["image_shape"]) == [3, 4, 1]
    assert list(small.obs_names) == list(adata.obs_names) and small.var_names[-1] == "pixel_2_3"
    assert pictures.resized(adata, None) is adata


def test_different_sizes_are_refused_by_name_unless_a_size_is_given(tmp_path):
    save(tmp_path, n=4)
    save(tmp_path, n=1, shape=(9, 9), prefix="odd")
    with refused("different sizes", "4 have 6 x 8", "'odd0' has 9 x 9", "size="):
        pictures.read(tmp_path)
    adata = pictures.read(tmp_path, size=(6, 8))
    assert adata.shape == (5, 48) and adata.obs_names[0] == "odd0"
    assert np.allclose(adata["t0"].X[0], noise(6, 8, seed=0).ravel() / 255, atol=1e-6)


def test_different_numbers_of_channels_are_refused_by_name(tmp_path):
    save(tmp_path, n=3)
    save(tmp_path, n=1, shape=(6, 8, 3), prefix="colour")
    with refused("different numbers of channels", "'colour0' has 3"):
        pictures.read(tmp_path, size=6)


# --- what else is refused ---


def test_a_channel_with_one_value_is_refused_and_the_others_are_named(tmp_path):
    for i in range(3):
        x = noise(6, 8, 3, seed=i)
        x[..., 1] = 51
        Image.fromarray(x).save(tmp_path / f"t{i}.png")
    with refused("channel 1 is 0.2 in every pixel of every picture", "channels=[0, 2]"):
        pictures.read(tmp_path)
    assert list(pictures.read(tmp_path, channels=[0, 2]).uns["image_shape"]) == [6, 8, 2]
    with refused("channel 0 is 0.2", "nothing to learn"):
        pictures.read(tmp_path, channels=[1])


def test_a_channel_that_is_flat_in_each_picture_but_not_over_all_may_stay(tmp_path):
    for i in range(3):
        x = noise(6, 8, 3, seed=i)
        x[..., 1] = 50 * i
        Image.fromarray(x).save(tmp_path / f"t{i}.png")
    assert list(pictures.read(tmp_path).uns["image_shape"]) == [6, 8, 3]


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("keep", [0, 5, 60, 0.5, 0.9])
def test_truncated_pictures_are_named(tmp_path, ending, keep):
    save(tmp_path, n=3, shape=(40, 40), ending=ending)
    path = tmp_path / f"t1{ending}"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with refused(str(path), "damaged, cut short or no picture"):
        pictures.read(tmp_path)


def test_text_that_calls_itself_a_picture_and_stacks_are_refused(tmp_path):
    (tmp_path / "a.png").write_text("<html>not found</html>")
    with refused("a.png", "no picture"):
        pictures.read(tmp_path)
    tifffile.imwrite(tmp_path / "b.tif", noise(12, 6, 8), photometric="minisblack")
    with refused("b.tif is a stack of shape", "12", "one picture a file"):
        pictures.open_picture(tmp_path / "b.tif")
    tifffile.imwrite(tmp_path / "c.tif", noise(3, 6, 8), imagej=True, metadata={"axes": "ZYX"})
    with refused("c.tif is a stack"):
        pictures.open_picture(tmp_path / "c.tif")


def test_a_folder_without_pictures_and_samples_named_twice_are_refused(tmp_path):
    with refused("holds no pictures", ".png"):
        pictures.read(tmp_path)
    save(tmp_path, n=2)
    save(tmp_path, n=1, ending=".jpg")
    with refused("several pictures for 't0'", "t0.jpg", "t0.png"):
        pictures.read(tmp_path)
    with refused("does not exist", error=FileNotFoundError):
        pictures.read(tmp_path / "nowhere")


# --- lists of pictures ---


@pytest.fixture
def frames(tmp_path):
    """A list of four pictures that lie in a folder beside it."""
    save(tmp_path / "films")
    table = pd.DataFrame({"path": [f"films/t{i}.png" for i in range(4)]}, index=[f"00{i}" for i in range(4)])
    table.to_csv(tmp_path / "frames.csv")
    return table


def test_a_list_names_samples_and_its_paths_are_relative_to_it(frames, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    adata = pictures.read(tmp_path / "frames.csv")
    assert list(adata.obs_names) == ["000", "001", "002", "003"]
    assert np.allclose(adata.X[2], noise(6, 8, seed=2).ravel() / 255)
    frames.to_csv(tmp_path / "frames.tsv", sep="\t")
    assert np.array_equal(pictures.read(tmp_path / "frames.tsv").X, adata.X)


def test_faults_of_a_list_name_the_samples(frames, tmp_path):
    def written(**changes):
        frames.assign(**changes).to_csv(tmp_path / "frames.csv")
        return tmp_path / "frames.csv"

    with refused("pictures of '001', '003' are not there", str(Path("films") / "no.png"), "leave these samples out"):
        pictures.read(written(path=["films/t0.png", "films/no.png", "films/t2.png", "films/none.png"]))
    with refused("no path for '002'"):
        pictures.read(written(path=["films/t0.png", "films/t1.png", None, "films/t3.png"]))
    pd.concat([frames, frames.iloc[:1]]).to_csv(tmp_path / "frames.csv")
    with refused("several pictures for '000'"):
        pictures.read(tmp_path / "frames.csv")
    frames.rename(columns={"path": "paths"}).to_csv(tmp_path / "frames.csv")
    with refused("no column 'path'", "did you mean 'paths'?"):
        pictures.read(tmp_path / "frames.csv")


# --- through datasets.load ---


@pytest.fixture
def proteins(tmp_path):
    x = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 3)), [f"t{i}" for i in range(5)], list("ABC"))
    x.to_csv(tmp_path / "p.tsv", sep="\t")
    return tmp_path / "p.tsv"


def test_a_folder_beside_a_table_is_matched_by_name_and_makes_a_mosaic(proteins, tmp_path):
    save(tmp_path / "images")
    mdata = datasets.load({"protein": proteins, "image": str(tmp_path / "images") + "/"}, size=(3, 4))
    assert list(mdata.mod) == ["protein", "image"] and mdata.n_obs == 5 and mdata["image"].shape == (4, 12)
    assert mdata.uns["dataset"]["modalities"] == {"protein": "continuous", "image": "image"}
    assert re.fullmatch("[0-9a-f]{64}", mdata.uns["dataset"]["sha256"])
    mdata.write(tmp_path / "copy.h5mu")
    again = datasets.load(tmp_path / "copy.h5mu")
    assert list(again["image"].uns["image_shape"]) == [3, 4, 1] and np.array_equal(again["image"].X, mdata["image"].X)


def test_the_hash_follows_the_pictures_not_their_list(frames, tmp_path):
    before = datasets.load(tmp_path / "frames.csv").uns["dataset"]["sha256"]
    assert before == datasets.load(tmp_path / "frames.csv").uns["dataset"]["sha256"]
    Image.fromarray(noise(6, 8, seed=9)).save(tmp_path / "films" / "t2.png")
    assert datasets.load(tmp_path / "frames.csv").uns["dataset"]["sha256"] != before


def test_a_list_of_pictures_gives_annotation_with_them(frames, tmp_path):
    frames.assign(hour=[1.0, 2.5, 3.0, 4.0], stage=list("aabb")).to_csv(tmp_path / "frames.csv")
    p = pd.DataFrame(np.random.default_rng(0).normal(size=(4, 2)), frames.index, list("AB"))
    p.to_csv(tmp_path / "p.csv")
    source = {"protein": tmp_path / "p.csv", "image": tmp_path / "frames.csv"}
    mdata = datasets.load(source, label_key="stage", channels=[0])
    assert list(mdata.obs_names) == ["000", "001", "002", "003"] and mdata["image"].shape == (4, 48)
    assert mdata.obs["hour"].tolist() == [1, 2.5, 3, 4] and mdata.obs["stage"].tolist() == list("aabb")


def test_pictures_alone_are_a_data_set_called_image(frames, tmp_path):
    for source in (tmp_path / "films", tmp_path / "frames.csv"):
        mdata = datasets.load(source, size=4)
        assert list(mdata.mod) == ["image"] and mdata["image"].shape == (4, 16)
    assert list(datasets.load(tmp_path / "films", modality="film").mod) == ["film"]


def test_a_feature_called_path_and_a_label_called_path_do_not_make_a_list(tmp_path):
    x = pd.DataFrame({"path": [1.5, 2.5, 3.5], "way": [1, 2, 4]}, index=list("abc"))
    x.to_csv(tmp_path / "x.csv")
    assert list(datasets.load(tmp_path / "x.csv")["rna"].var_names) == ["path", "way"]
    x.assign(path=["left", "right", "left"]).to_csv(tmp_path / "x.csv")
    assert datasets.load(tmp_path / "x.csv", label_key="path")["rna"].n_vars == 1


def test_options_for_pictures_need_pictures(proteins, tmp_path):
    with refused("size= and channels= are for pictures"):
        datasets.load(proteins, size=64)
    with refused("size= and channels= are for pictures"):
        datasets.load({"protein": proteins}, channels=[0])


def test_folders_without_pictures_and_pictures_of_other_samples_are_refused(proteins, tmp_path):
    (tmp_path / "empty").mkdir()
    with refused("empty holds no pictures"):
        datasets.load({"protein": proteins, "image": tmp_path / "empty"})
    save(tmp_path / "others", prefix="film")
    with refused("no samples in common", "'t0'", "'film0'"):
        datasets.load({"protein": proteins, "image": tmp_path / "others"})


def test_a_picture_must_be_as_large_as_it_says_and_no_channel_constant(tmp_path):
    adata = pictures.read(save(tmp_path / "images", shape=(6, 8, 3)))
    data = checks.Parts({"image": adata}, pd.DataFrame(index=adata.obs_names), "mine")
    assert checks.problems(data) == []
    for shape, said in (([6, 8, 1], "6 x 8 x 1"), ([48, 3], "48 x 3"), ([12, 12], "12 x 12")):
        adata.uns["image_shape"] = np.array(shape)
        assert [said in text and "144 features" in text for text in checks.problems(data)] == [True]
    adata.uns["image_shape"] = np.array([6, 8, 3])
    adata.X[:, 2::3] = 0
    (problem,) = checks.problems(data)
    assert "'image'" in problem and "channel 2 is 0 in every" in problem and "channels=[0, 1]" in problem


def test_check_looks_at_pictures_too(proteins, tmp_path, capsys):
    save(tmp_path / "images", shape=(6, 8, 3))
    call = ["check", f"protein={proteins}", f"image={tmp_path / 'images'}"]
    assert datasets.main(call) == 0
    text = capsys.readouterr().out
    assert "image: 4 samples x 144 features, kind image" in text and re.search(r"04 translation +ready", text)
    assert "modality 'image' lacks 1 of 5 samples" in text and "'t4'" in text
    assert datasets.main([*call, "--size", "3", "4", "--channels", "0", "--channels", "2"]) == 0
    assert "image: 4 samples x 24 features" in capsys.readouterr().out
    save(tmp_path / "images", n=1, shape=(9, 9, 3), prefix="odd")
    assert datasets.main(call) == 1
    assert "'odd0' has 9 x 9; give size=" in capsys.readouterr().err
