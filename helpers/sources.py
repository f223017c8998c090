"""Published files: fetched once into the data folder, checked by sha256, and parsed into the parts of a data set."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import math
import os
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import pandas as pd

from helpers import project
from helpers.checks import Parts, part
from helpers.pictures import Size, pixel_names, resized

ATTEMPTS = 3  # per file and call; each goes on where the last one stopped
WAIT = 1.0  # seconds before the second attempt, twice as long before the third
TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds without a byte
CHUNK = 1 << 14  # bytes; small, since a chunk cut short is lost


@dataclass(frozen=True)
class Remote:
    """A published file: where it lies, and its name inside the data folder. Introduced in notebook 01."""

    path: str  # "folder/file", also the layout of the data folder
    url: str
    sha256: str
    n_bytes: int


def fetch(files: Sequence[Remote]) -> list[Path]:
    """Paths of the files in `project.data_dir()`, downloaded where they are not there with the right sha256.

    A download that stops is continued by the next call; a file appears under its name only when it is whole and its
    hash is right, and a folder that has everything is not written to. Raises OSError (no network, full disk,
    read-only folder; says how to put the file there by hand) or ValueError (wrong content).
    Introduced in notebook 01.
    """
    folder = project.data_dir()
    missing = [file for file in files if not is_cached(file)]
    if missing:
        with _writable(folder), _alone(folder), _progress(missing) as bar:
            with ThreadPoolExecutor(min(8, len(missing))) as pool:
                jobs = [pool.submit(_retrieve, file, folder, bar) for file in missing]
                try:
                    for job in jobs:
                        job.result()
                finally:
                    pool.shutdown(cancel_futures=True)
    return [folder / file.path for file in files]


def is_cached(file: Remote) -> bool:
    """Whether the data folder holds the file with the right sha256. Introduced in notebook 01."""
    path = project.data_dir() / file.path
    return path.is_file() and sha256_of(path) == file.sha256


def sha256_of(path: str | Path) -> str:
    """sha256 of a file, in hexadecimal. Introduced in notebook 01."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _retrieve(file: Remote, folder: Path, bar: Any) -> None:
    import pooch

    pooch.get_logger().setLevel("WARNING")
    where = PurePosixPath(file.path)
    downloader = partial(_download, file=file, target=folder / file.path, bar=bar)
    target = folder / where.parent
    pooch.retrieve(file.url, f"sha256:{file.sha256}", fname=where.name, path=target, downloader=downloader)


def _download(url: str, output_file: str, pooch: Any, *, file: Remote, target: Path, bar: Any) -> None:
    """Downloader for pooch that continues a partial download, kept beside the target as `*.part`."""
    part_file = target.with_name(target.name + ".part")
    for attempt in range(ATTEMPTS):
        time.sleep(WAIT * attempt)
        resumed, error = _stream(url, part_file, bar)
        if error is not None:
            continue
        got = sha256_of(part_file)
        if got == file.sha256:
            os.replace(part_file, output_file)
            return
        part_file.unlink()
        error = "what was kept of an earlier download did not fit"
        if not resumed:  # else another attempt, from the beginning
            raise ValueError(
                f"{url} has the sha256 {got} and not the expected {file.sha256}; the download was deleted: try again, "
                f"and if it stays so, get the file ({_size(file.n_bytes)}) elsewhere and put it at {target}"
            )
    kept = part_file.stat().st_size if part_file.exists() else 0
    state = (
        f"{kept} of {file.n_bytes} bytes are kept and the next call goes on from there" if kept else "nothing is kept"
    )
    raise ConnectionError(
        f"cannot download {url}: {error}; {state}; or put the file ({_size(file.n_bytes)}, sha256 {file.sha256}) "
        f"by hand at {target}"
    )


def _stream(url: str, part_file: Path, bar: Any) -> tuple[bool, str | None]:
    """One attempt to complete `part_file`: whether it was continued, and what went wrong if anything did."""
    import requests

    have = part_file.stat().st_size if part_file.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    resumed = False
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as reply:
            if have and reply.status_code == 416:  # nothing is left to send
                return True, None
            reply.raise_for_status()
            start = reply.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
            resumed = reply.status_code == 206 and start == str(have)
            with part_file.open("ab" if resumed else "wb") as out:
                for chunk in reply.iter_content(CHUNK):
                    out.write(chunk)
                    bar.update(len(chunk))
                if out.tell() < int(reply.headers.get("Content-Length", 0)) + have * resumed:
                    return resumed, "the server stopped half-way"
    except requests.HTTPError as error:
        return resumed, f"the server answered {error.response.status_code} {error.response.reason}"
    except requests.Timeout:
        return resumed, "the server did not answer in time"
    except requests.RequestException:
        begun = part_file.exists() and part_file.stat().st_size > 0
        return resumed, "the server stopped half-way" if begun else "no connection to the server"
    return resumed, None


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Make the folder; a full disk or a read-only folder becomes one sentence."""
    reasons = {errno.ENOSPC: "the disk is full", errno.EROFS: "it is read-only", errno.EACCES: "it is read-only"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except ConnectionError:
        raise
    except OSError as error:
        why = reasons.get(error.errno or 0, error.strerror or str(error))
        advice = "set WORKBOOK_DATA to a folder with space that may be written to"
        raise OSError(error.errno, f"cannot download into the data folder {folder}: {why}; {advice}") from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time download, where the system has file locks; the others find the files there."""
    with open(folder / ".lock", "w") as lock:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _progress(files: Sequence[Remote]) -> Any:
    from tqdm.auto import tqdm

    what = files[0].path if len(files) == 1 else f"{len(files)} files"
    return tqdm(total=sum(f.n_bytes for f in files), unit="B", unit_scale=True, desc=f"downloading {what}")


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:.1f} kB"


def open_zipped(path: Path) -> IO[bytes]:
    """The one file inside a zip archive, opened for reading; nothing is unpacked to disk.

    Raises ValueError for a damaged archive, for more or fewer files, and for members that would climb out of a
    folder (`../`, absolute paths, links). Introduced in notebook 01.
    """
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a whole zip archive ({error}); delete it and fetch it again") from error
    for member in archive.infolist():
        name = member.filename.replace("\\", "/")
        is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
        if is_link or name.startswith("/") or name[1:2] == ":" or ".." in PurePosixPath(name).parts:
            archive.close()
            what = "is a link" if is_link else "points out of the folder"
            raise ValueError(f"{path} is refused: its member '{member.filename}' {what}; get it from another source")
    members = [m for m in archive.infolist() if not m.is_dir()]
    if len(members) != 1:
        archive.close()
        raise ValueError(f"{path} holds {len(members)} files; one table is expected")
    return archive.open(members[0])


def celegans(files: Mapping[str, Path], keep_reporter: bool = False) -> Parts:
    """C. elegans embryo over 260 time points: `protein` (transcription-factor reporters) and `image` (64 × 64).

    The column of the reporter that the images show (ALY-2) is left out of `protein` unless `keep_reporter`: with it
    a translation would be partly a copy. `obs`: time (1 … 260), early. Introduced in notebook 04.
    """
    import tifffile

    table = pd.read_csv(files["AM3_NO2_raw_cell.tsv"], sep="\t", index_col=0)
    frames = pd.read_csv(files["ALY-2_SYS721_mappings.txt"], sep="\t", index_col="sample_ids").loc[table.index]
    images = np.stack([tifffile.imread(files[name])[..., 1] for name in frames["img_paths"]])  # channel 1 has all
    x, shape = images.reshape(len(images), -1) / np.float32(255), np.array([*images.shape[1:], 1])
    if not keep_reporter:
        table = table.drop(columns=frames["img_paths"].iloc[0].rsplit("_", 1)[0])
    early = np.where(frames["early"].astype(str).str.strip("'") == "1", "early", "late")
    obs = pd.DataFrame({"time": frames["extra_class_labels"].astype(float), "early": pd.Categorical(early)})
    modalities = {
        "protein": part(table.to_numpy(), table.index, table.columns),
        "image": part(x, table.index, pixel_names(shape), image_shape=shape),
    }
    return Parts(modalities, obs, "celegans")


def tcga_cohort(files: Mapping[str, Path], clip: float = 5.0) -> Parts:
    """One TCGA cohort, one row per patient: `rna` (z-scores within the cohort, cut at ±`clip`: the right tail is
    heavy), `cnv` (-2 … 2), `mutation` (0/1).

    `obs`: age (years), sex, site (tissue source site), survival_months, event (1 = died), oncotree_code, histology
    (the same). Introduced in notebook 01.
    """
    with open_zipped(next(path for name, path in files.items() if name.endswith(".zip"))) as table:
        rows = pd.read_csv(table, dtype={"site": str}, low_memory=False).drop_duplicates("case_id")
    rows = rows.set_index("case_id")
    modalities = {}
    for name, suffix in {"rna": "_rnaseq", "cnv": "_cnv", "mutation": "_mut"}.items():
        chosen = [column for column in rows.columns if column.endswith(suffix)]
        x = rows[chosen].to_numpy(np.float32)
        x = np.clip(x, -clip, clip) if name == "rna" else x
        modalities[name] = part(x, rows.index, [column.removesuffix(suffix) for column in chosen])
    codes = pd.Categorical(rows["oncotree_code"])
    obs = pd.DataFrame(
        {
            "age": rows["age"].astype(float),
            "sex": pd.Categorical(np.where(rows["is_female"] == 1, "female", "male")),
            "site": pd.Categorical(rows.index.str.split("-").str[1]),  # the table has lost its leading zeros
            "survival_months": rows["survival_months"].astype(float),
            "event": (1 - rows["censorship"]).astype(np.int64),
            "oncotree_code": codes,
            "histology": codes,
        },
        index=rows.index,
    )
    return Parts(modalities, obs, "tcga")


def tcga_brca(files: Mapping[str, Path], clip: float = 5.0) -> Parts:
    """`tcga_cohort` of breast cancer, joined with its clinical table: pam50 (missing for some), stage (I … IV), and
    months and events of overall, disease-specific and progression-free survival. Introduced in notebook 01.
    """
    parts = tcga_cohort(files, clip)
    clinical = pd.read_csv(next(path for name, path in files.items() if name.endswith(".tsv")), sep="\t")
    clinical = clinical.drop_duplicates("Patient ID").set_index("Patient ID").reindex(parts.obs.index)
    stage = clinical["Neoplasm Disease Stage American Joint Committee on Cancer Code"]
    parts.obs["pam50"] = pd.Categorical(clinical["Subtype"].str.removeprefix("BRCA_"))
    parts.obs["stage"] = pd.Categorical(stage.str.extract(r"^STAGE (I{1,3}|IV)[ABC]?$")[0], ["I", "II", "III", "IV"])
    for short, (months, status) in CLINICAL_SURVIVAL.items():
        parts.obs[f"{short}_months"] = clinical[months].astype(float)
        parts.obs[f"{short}_event"] = clinical[status].str[0].astype(float)  # "1:DECEASED", "0:LIVING", missing
    return parts


CLINICAL_SURVIVAL = {
    "os": ("Overall Survival (Months)", "Overall Survival Status"),
    "dss": ("Months of disease-specific survival", "Disease-specific Survival status"),
    "pfs": ("Progress Free Survival (Months)", "Progression Free Status"),
}


def tcga_breast(files: Mapping[str, Path]) -> Parts:
    """Breast cancer of mixOmics: `rna`, `mirna` (220 samples) and `protein` (150), a mosaic.

    `obs`: subtype, published_split ("train"; "test" lacks protein). Introduced in notebook 04.
    """
    import rdata

    study = next(iter(rdata.read_rda(files["breast.TCGA.rda"], default_encoding="utf8").values()))
    blocks = [study["data.train"], study["data.test"]]
    modalities = {}
    for name, stored in {"rna": "mrna", "mirna": "mirna", "protein": "protein"}.items():
        tables = [block[stored].to_pandas() for block in blocks if stored in block]
        table = pd.concat(tables, join="inner")
        modalities[name] = part(table.to_numpy(), table.index, table.columns)
    names = [str(sample) for block in blocks for sample in block["mrna"].coords["dim_0"].values]
    subtype = [label for block in blocks for label in block["subtype"]]
    split = np.repeat(["train", "test"], [len(block["subtype"]) for block in blocks])
    obs = pd.DataFrame({"subtype": pd.Categorical(subtype), "published_split": pd.Categorical(split)}, index=names)
    return Parts(modalities, obs, "tcga-breast")


def mnist(files: Mapping[str, Path], size: Size | None = None) -> Parts:
    """MNIST's 10,000 test images of handwritten digits: `image`, 28 x 28 or resized to `size`; obs: digit.

    Raises ValueError for damaged files. Introduced in notebook 04.
    """
    images, digits = (read_idx(files[f"t10k-{what}-ubyte.gz"]) for what in ("images-idx3", "labels-idx1"))
    if images.ndim != 3 or digits.ndim != 1 or len(images) != len(digits):
        raise ValueError(f"MNIST's files hold images {images.shape} and labels {digits.shape}; fetch both again")
    names, shape = [f"mnist{i:05d}" for i in range(len(images))], np.array([*images.shape[1:], 1])
    x = images.reshape(len(images), -1) / np.float32(255)
    image = resized(part(x, names, pixel_names(shape), image_shape=shape), size)
    return Parts({"image": image}, pd.DataFrame({"digit": pd.Categorical(digits.astype(str))}, index=names), "mnist")


def read_idx(path: Path) -> np.ndarray:
    """The bytes of a gzipped file in MNIST's format idx, in the shape that its head says.

    Raises ValueError for a file of another format, cut short, or with more or fewer values than its head says.
    Source: LeCun, Cortes & Burges, The MNIST database. Introduced in notebook 04.
    """
    try:
        with gzip.open(path) as file:
            raw = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}); delete it and fetch it again") from error
    n_dims = raw[3] if len(raw) > 3 and raw[:3] == b"\x00\x00\x08" else 0  # two zeros, 8 for bytes, dimensions
    head = 4 + 4 * n_dims
    if not n_dims or len(raw) < head:
        raise ValueError(f"{path} does not begin as an idx file of bytes; delete it and fetch it again")
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", n_dims, 4))
    if len(raw) - head != math.prod(shape):
        said = " x ".join(map(str, shape))
        raise ValueError(f"{path} says {said} values but holds {len(raw) - head}; delete it and fetch it again")
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)
