"""Pictures as a modality: read from a folder or a list of files, brought to one size, flattened in one layout.

The layout is a contract: a row of X is a picture of `uns["image_shape"]` = [height, width, channels] in C order, grey
values in 0..1. Whoever needs channels first (a convolution does) permutes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from helpers.checks import constant_channels, part
from helpers.wording import closest, few

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
Size = int | Sequence[int]  # pixels of a square, or height and width


def read(source: str | Path, size: Size | None = None, channels: Sequence[int] | None = None) -> AnnData:
    """The pictures of a folder (the file's stem names the sample), or of a table (.csv, .tsv) that lists them.

    The first column of a table names the samples; its column `path` the files, relative to the table's folder.
    See `from_files` for the result, `size`, `channels` and what is refused. Raises FileNotFoundError where the source
    is not there, ValueError for a folder without pictures, a table without `path`, or duplicate sample names.
    Introduced in notebook 04.
    """
    source = Path(source).expanduser()
    if source.is_dir():
        return from_files(in_folder(source), size, channels)
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist; give a folder of pictures or a table that lists them")
    separator = "," if source.suffix.lower() == ".csv" else "\t"
    table = pd.read_csv(source, sep=separator, dtype=str)  # with an index_col pandas would turn 001 into 1
    table = table.set_index(table.columns[0])
    if "path" not in table:
        hint = closest("path", table.columns)
        raise ValueError(f"{source} has no column 'path' that says where each picture lies{hint}")
    return from_files(listed(table["path"], source), size, channels)


def in_folder(folder: str | Path) -> pd.Series:
    """The picture files in a folder by sample name, in the order of the numbers in their names (t2 before t10).

    Hidden files and other endings are passed over. Raises ValueError for a folder without pictures.
    Introduced in notebook 04.
    """
    files = [path for path in Path(folder).iterdir() if is_picture(path)]
    if not files:
        raise ValueError(f"the folder {folder} holds no pictures; readable are {', '.join(ENDINGS)}")
    files = sorted(files, key=lambda path: _in_order_of_numbers(path.name))
    return _unrepeated(pd.Series(files, index=[path.stem for path in files], dtype=object), folder)


def is_picture(path: Path) -> bool:
    """Whether a file has the ending of a picture and is not hidden. Introduced in notebook 04."""
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()


def _in_order_of_numbers(name: str) -> list[str | int]:
    return [int(text) if i % 2 else text for i, text in enumerate(re.split(r"(\d+)", name))]


def listed(paths: pd.Series, table: str | Path) -> pd.Series:
    """The files of a list (sample name -> path) that stands in `table`; its paths are relative to the table's folder.

    Raises ValueError for samples without a path, files that are not there, or duplicate sample names.
    Introduced in notebook 04.
    """
    if bare := list(paths.index[paths.isna()]):
        raise ValueError(f"{table} gives no path for {few(bare)}; fill it in, or leave these samples out of the list")
    files = _unrepeated(paths.map(lambda path: Path(table).parent / Path(str(path)).expanduser()), table)
    if gone := [name for name, path in files.items() if not path.is_file()]:
        raise ValueError(
            f"{table}: the pictures of {few(gone)} are not there ({files[gone[0]]} does not exist); correct the "
            "column 'path', or leave these samples out of the list"
        )
    return files


def _unrepeated(files: pd.Series, where: str | Path) -> pd.Series:
    twice = files.index[files.index.duplicated()].unique()
    if len(twice):
        there = ", ".join(Path(path).name for path in files[files.index == twice[0]])
        raise ValueError(f"{where} has several pictures for {few(twice)} ({there}); keep one for each sample")
    return files


def from_files(files: pd.Series, size: Size | None = None, channels: Sequence[int] | None = None) -> AnnData:
    """A modality from picture files (sample name -> path), X [n_obs, height * width * channels] in 0..1.

    Whole numbers are divided by the largest value of their type, floats must lie in 0..1. `size` resizes all;
    `channels` keeps some, in this order. Raises ValueError, naming the files, for pictures that cannot be read, that
    differ in size (without `size`) or in channels, for values outside 0..1, and for a channel with one value only.
    Introduced in notebook 04.
    """
    images = [unit(open_picture(path), path) for path in files]
    _check_alike(files, [image.shape[2:] for image in images], "numbers of channels", "save them all in one way")
    images = [_keep(image, channels) for image in images]
    if size is None:
        _check_alike(files, [image.shape[:2] for image in images], "sizes", "give size= to bring them to one")
    else:
        images = [resize(image.reshape(1, -1), image.shape, size).reshape(*height_width(size), -1) for image in images]
    x, shape = np.stack(images), images[0].shape
    if constant := constant_channels(x.reshape(len(x), -1), shape):
        raise ValueError(f"the pictures ({Path(files.iloc[0]).name}, ...) cannot be used: {constant}")
    return part(x.reshape(len(x), -1), files.index, pixel_names(shape), image_shape=np.array(shape))


def _keep(image: np.ndarray, channels: Sequence[int] | None) -> np.ndarray:
    if channels is None:
        return image
    chosen, there = np.atleast_1d(channels), image.shape[2]
    if not chosen.size or chosen.dtype.kind not in "iu" or chosen.min() < 0 or chosen.max() >= there:
        raise ValueError(f"channels={channels} does not fit pictures with {there} channels; count them from 0")
    return image[..., chosen]


def _check_alike(files: pd.Series, found: Sequence[tuple[int, ...]], what: str, advice: str) -> None:
    """ValueError where pictures differ; it names those that are unlike the most."""
    kinds = pd.Series([" x ".join(map(str, shape)) for shape in found], index=files.index)
    count = kinds.value_counts()
    if len(count) > 1:
        odd = kinds[kinds != count.index[0]]
        raise ValueError(
            f"the pictures have different {what}: {count.iloc[0]} have {count.index[0]}, but {few(odd.index)} "
            f"{'has' if len(odd) == 1 else 'have'} {', '.join(odd.unique()[:3])}; {advice}"
        )


def open_picture(path: str | Path) -> np.ndarray:
    """The values of one picture as they are stored, [height, width, channels].

    Raises ValueError for a file that is damaged, cut short, no picture, or a stack of several.
    Introduced in notebook 04.
    """
    reader = _tiff if Path(path).suffix.lower() in (".tif", ".tiff") else _pillow
    try:
        image = reader(Path(path))
    except Exception as error:  # the libraries raise a dozen kinds on damaged files
        raise ValueError(f"{path} cannot be read: damaged, cut short or no picture ({error}); replace it") from error
    if image.ndim != 3:
        raise ValueError(f"{path} is a stack of shape {image.shape} and no single picture; save one picture a file")
    return image


def _pillow(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        plain = {"P": "RGBA" if "transparency" in image.info else "RGB", "CMYK": "RGB", "YCbCr": "RGB", "PA": "RGBA"}
        x = np.asarray(image.convert(plain[image.mode]) if image.mode in plain else image)
    x = x.astype(np.uint16) if x.dtype == np.int32 else x  # how Pillow gives some grey pictures of 16 bits
    return x[..., None] if x.ndim == 2 else x


def _tiff(path: Path) -> np.ndarray:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            x, axes = series.asarray(), series.axes
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        return _pillow(path)  # a compression (LZW) that tifffile knows only with another package
    if x.ndim == 2:
        return x[..., None]
    channel = next((i for i, axis in enumerate(axes) if axis in "SC"), None)
    if channel is None and x.ndim == 3 and axes[0] == "Q":  # said by nobody: channels are few
        channel = -1 if x.shape[-1] <= 4 else 0 if x.shape[0] <= 4 else None
    return x if channel is None and x.ndim != 3 else x[None] if channel is None else np.moveaxis(x, channel, -1)


def unit(image: np.ndarray, path: str | Path = "the picture") -> np.ndarray:
    """Values in 0..1 (float32): whole numbers over the largest value of their type, floats as they are.

    Raises ValueError for negative whole numbers, and for floats outside 0..1 or missing. Introduced in notebook 04.
    """
    if image.dtype.kind in "iu":
        if image.min() < 0:
            raise ValueError(f"{path} has negative values (down to {image.min()}); save it with values from 0 on")
        return (image / np.float64(np.iinfo(image.dtype).max)).astype(np.float32)
    if not (image.min() >= 0 and image.max() <= 1):  # true for NaN too
        found = "missing values (NaN)" if np.isnan(image).any() else f"values from {image.min():g} to {image.max():g}"
        raise ValueError(f"{path} has {found}; pictures of decimal numbers must lie in 0 to 1: rescale them all alike")
    return image.astype(np.float32)


def resize(x: np.ndarray, shape: Sequence[int], size: Size) -> np.ndarray:
    """Pictures [n, height * width * channels] of `shape` brought to `size`: [n, new height * new width * channels].

    As `skimage.transform.resize` (linear, smoothed before it shrinks), but for all pictures at once: resizing is
    linear and goes along rows and columns separately, so it is a matrix for either. Raises ValueError for sizes below
    one pixel or a `shape` that does not fit. Introduced in notebook 04.
    """
    (height, width), (rows, columns, channels) = height_width(size), map(int, shape)
    if x.shape[1] != rows * columns * channels:
        raise ValueError(f"pictures of {x.shape[1]} values do not have the shape {rows} x {columns} x {channels}")
    images = np.asarray(x, np.float32).reshape(-1, rows, columns, channels)
    down, across = (_along(*pair) for pair in ((rows, height), (columns, width)))
    found = np.einsum("ah,nhwc,bw->nabc", down, images, across, optimize=True)
    if images.size:  # rounding may pass the range by a hair
        found = np.clip(found, images.min(), images.max())
    return found.reshape(len(x), height * width * channels).astype(np.float32)


def resized(adata: AnnData, size: Size | None) -> AnnData:
    """A modality of pictures brought to `size` by `resize`; as it is where that is None. Introduced in notebook 04."""
    if size is None:
        return adata
    shape = np.array([*height_width(size), adata.uns["image_shape"][2]])
    x = resize(adata.X, adata.uns["image_shape"], size)
    return part(x, adata.obs_names, pixel_names(shape), image_shape=shape)


def _along(old: int, new: int) -> np.ndarray:
    """The matrix [new, old] that resizes one axis: what happens to each unit vector."""
    from skimage.transform import resize as resize_image

    return resize_image(np.eye(old), (new, old), order=1, mode="reflect", anti_aliasing=new < old).astype(np.float32)


def height_width(size: Size) -> tuple[int, int]:
    """Height and width in pixels from one number (a square) or a pair; ValueError for anything else.

    Introduced in notebook 04.
    """
    values = np.atleast_1d(size)
    if values.shape not in ((1,), (2,)) or values.dtype.kind not in "iu" or values.min() < 1:
        raise ValueError(f"size={size} must be a whole number of pixels, or a pair (height, width)")
    return int(values[0]), int(values[-1])


def pixel_names(shape: Iterable[int]) -> list[str]:
    """Feature names of a picture in the order of the layout: pixel_row_column, and _channel where there are several.

    Introduced in notebook 04.
    """
    height, width, channels = map(int, shape)
    ends = [""] if channels == 1 else [f"_{channel}" for channel in range(channels)]
    return [f"pixel_{row}_{column}{end}" for row in range(height) for column in range(width) for end in ends]
