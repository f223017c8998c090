"""Files are whole or absent, results say where they come from, and devices are those there are."""

import errno
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from helpers import project

STEM = "01_tiny"


@pytest.fixture
def workbook(tmp_path, monkeypatch):
    """A project with one notebook whose parameters are seed, rate and dataset."""
    cell = nbformat.v4.new_code_cell("seed: int = 1  # a\nrate: float = 0.1  # b\ndataset: str = 'sim'  # c")
    cell.metadata["tags"] = ["parameters"]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "notebooks" / f"{STEM}.ipynb")
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.delenv("WORKBOOK_RUN_DIR", raising=False)
    return tmp_path


@pytest.fixture
def run(workbook):
    return project.start(STEM, {"seed": 7, "rate": np.float32(0.5), "dataset": "sim", "other": object()})


def results(run):
    return json.loads((run.folder / "results.json").read_text())


# --- writing -------------------------------------------------------------------------------------------------------


def test_write_atomic_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.txt"
    project.write_atomic(path, "β")
    assert path.read_bytes() == "β".encode()
    project.write_atomic(str(path), b"\x00")
    assert path.read_bytes() == b"\x00" and [p.name for p in path.parent.iterdir()] == ["b.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize(
    ("number", "told"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EDQUOT, "quota")]
)
def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path, monkeypatch, call, number, told):
    path = tmp_path / "file"
    path.write_text("earlier")

    really_open = os.open

    def fail(*_, **__):
        if (call, number) == ("open", errno.ENOSPC) and os.path.exists("/dev/full"):
            return really_open("/dev/full", os.O_WRONLY)  # here the system itself refuses the bytes
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(project.os, call, fail)
    with pytest.raises(OSError, match=told) as caught:
        project.write_atomic(path, "later")
    assert caught.value.errno == number and str(path) in str(caught.value)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_text() == "earlier"


def test_a_write_that_the_system_cuts_off_leaves_no_half_file(tmp_path):
    """A real refusal in the middle of a write: the process may not make files of more than 10 kB."""
    program = f"""
import resource
from helpers import project
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
project.write_atomic({str(tmp_path / "small")!r}, bytes(9_000))
project.write_atomic({str(tmp_path / "large")!r}, bytes(90_000))
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "cannot write" in process.stderr and "large" in process.stderr
    assert [(p.name, p.stat().st_size) for p in tmp_path.iterdir()] == [("small", 9_000)]


def test_a_file_in_the_place_of_a_folder_is_one_clear_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="is a file, not a folder"):
        project.write_atomic(tmp_path / "file" / "below", "x")


# --- devices and seeds ---------------------------------------------------------------------------------------------


def test_auto_prefers_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert project.pick_device().type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert project.pick_device("auto").type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert project.pick_device("auto") == project.pick_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "mps", "cuda:1"])
def test_a_device_that_is_not_there_is_refused(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r'not on this machine \(found: cpu\); use device="auto"'):
        project.pick_device(name)


def test_a_second_gpu_needs_two(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert project.pick_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match="cuda:1"):
        project.pick_device("cuda:1")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", ""])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(ValueError, match="unknown device"):
        project.pick_device(name)


def test_one_seed_one_stream():
    drawn = []
    for seed in (3, 3, 4):
        project.seed_everything(seed)
        drawn.append((np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1] != drawn[2]


def test_data_dir_is_the_variable_or_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path))
    assert project.data_dir() == tmp_path.resolve()
    monkeypatch.delenv("WORKBOOK_DATA")
    assert project.data_dir().name.startswith("multiomics-workbook")


# --- a notebook's run ----------------------------------------------------------------------------------------------


def test_start_takes_the_present_values_of_the_parameters(run, workbook):
    assert run.params == {"seed": 7, "rate": np.float32(0.5), "dataset": "sim"}
    assert run.folder == workbook / "runs" / "explore" / STEM == project.run_dir("explore", STEM)
    assert run.folder.is_dir() and list(run.folder.iterdir()) == []


def test_start_goes_where_the_runner_says(workbook, monkeypatch):
    monkeypatch.setenv("WORKBOOK_RUN_DIR", str(workbook / "there"))
    assert project.start(STEM, {"seed": 1, "rate": 1.0, "dataset": ""}).folder == workbook / "there"


def test_start_tells_what_is_missing(workbook, monkeypatch):
    with pytest.raises(ValueError, match="run the parameters cell first: rate, dataset not defined"):
        project.start(STEM, {"seed": 1})
    with pytest.raises(FileNotFoundError, match=f"notebooks there: {STEM}"):
        project.start("02_none", {})
    monkeypatch.setenv("WORKBOOK_RUN_DIR", str(workbook / "notebooks" / f"{STEM}.ipynb"))
    with pytest.raises(OSError, match="is a file, not a folder"):
        project.start(STEM, {"seed": 1, "rate": 1.0, "dataset": ""})


@pytest.mark.parametrize(("text", "told"), [("{", "not a Jupyter notebook"), ('{"cells": []}', "has 0"), ("[]", "not")])
def test_a_broken_notebook_is_refused(workbook, text, told):
    (workbook / "notebooks" / f"{STEM}.ipynb").write_text(text)
    with pytest.raises(ValueError, match=told):
        project.start(STEM, {})


def test_figures_count_up_and_keep_their_number(run):
    from matplotlib import pyplot as plt

    for what in ("curves", "latent-plane", "curves"):
        fig, ax = plt.subplots(figsize=(1, 1))
        ax.plot([0, 1])
        run.figure(fig, what, alt=f"{what} in words")
        assert not plt.fignum_exists(fig.number)  # or a notebook shows it twice
    names = sorted(p.name for p in (run.folder / "figures").iterdir())
    assert names == ["01_curves.png", "01_curves.svg", "02_latent-plane.png", "02_latent-plane.svg"]
    assert (run.folder / "figures" / "01_curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "curves in words" in (run.folder / "figures" / "01_curves.svg").read_text()
    with pytest.raises(ValueError, match="cannot name a figure"):
        run.figure(fig, "../up")


def test_tables_keep_an_index_that_says_something(run):
    run.table(pd.DataFrame({"a": [1, 2]}), "plain")
    run.table(pd.DataFrame({"a": [1, 2]}, index=["x", "y"]), "named")
    assert (run.folder / "tables" / "plain.csv").read_text() == "a\n1\n2\n"
    assert (run.folder / "tables" / "named.csv").read_text() == ",a\nx,1\ny,2\n"


def test_results_hold_metrics_parameters_and_provenance(run):
    mdata = SimpleNamespace(uns={"dataset": {"name": "sim-bulk", "sha256": "ab"}})
    claim = {"id": "A1", "verdict": "holds in part", "evidence": "rho -0.8 over 3 seeds"}
    run.save_results({"r2": np.float32(0.5), "n": np.int64(3), "t": torch.tensor(2.0)}, [claim], mdata)
    saved = results(run)
    assert saved["metrics"] == {"r2": 0.5, "n": 3, "t": 2.0} and saved["not_finite"] == []
    assert saved["claims"] == [claim]
    assert saved["params"] == {"seed": 7, "rate": 0.5, "dataset": "sim"}
    provenance = saved["provenance"]
    assert provenance["data"] == {"name": "sim-bulk", "sha256": "ab"}
    assert provenance["seed"] == 7 and provenance["device"].startswith(str(run.device))
    assert provenance["versions"]["torch"].startswith("2.") and provenance["versions"]["python"].startswith("3.")
    assert set(provenance["versions"]) == {"python", *project.PACKAGES}
    assert provenance["wall_seconds"] >= 0 and provenance["cpu_count"] == os.cpu_count()
    assert 50 < provenance["peak_memory_mb"] < 1e6
    assert provenance["date_utc"].endswith("+00:00")


def test_what_is_not_finite_becomes_null_and_is_named(run):
    run.params["rate"] = math.inf
    run.save_results({"good": 1, "bad": math.nan, "worse": np.float64(-math.inf)})
    saved = results(run)  # json.loads would accept NaN, so the text is looked at too
    assert saved["metrics"] == {"good": 1, "bad": None, "worse": None} and saved["params"]["rate"] is None
    assert saved["not_finite"] == ["bad", "worse"]
    text = (run.folder / "results.json").read_text()
    assert "NaN" not in text and "Infinity" not in text


@pytest.mark.parametrize("value", ["high", None, True, [1.0], np.array([1.0, 2.0]), torch.zeros(2), {"a": 1}])
def test_a_metric_is_one_number(run, value):
    with pytest.raises(ValueError, match='metric "r2" must be one number'):
        run.save_results({"r2": value})
    assert not (run.folder / "results.json").exists()


def test_a_metric_has_a_name(run):
    with pytest.raises(ValueError, match="named by text"):
        run.save_results({1: 0.5})


@pytest.mark.parametrize(
    ("claims", "told"),
    [
        ([{"id": "A1", "verdict": "true", "evidence": "x"}], 'verdict "true" is none of "holds"'),
        ([{"id": "A1", "verdict": "holds", "evidence": " "}], "needs evidence"),
        ([{"id": "A1", "verdict": "holds"}], "id, verdict and evidence"),
        ([{"id": "A1", "verdict": "holds", "evidence": "x"}] * 2, "judged twice: A1"),
    ],
)
def test_a_claim_is_judged_once_in_agreed_words(run, claims, told):
    with pytest.raises(ValueError, match=told):
        run.save_results({}, claims)


def test_git_state_is_told_where_there_is_git(workbook, monkeypatch):
    assert project._git_state() == {"commit": None, "dirty": None}

    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(workbook), *who, *words], check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    state = project._git_state()
    assert len(state["commit"]) == 40 and state["dirty"] is False
    (workbook / "new").write_text("")
    assert project._git_state()["dirty"] is True
    monkeypatch.setattr(project, "ROOT", workbook / "notebooks")  # part of another repository: not its commit
    assert project._git_state() == {"commit": None, "dirty": None}
    monkeypatch.setenv("PATH", "")  # a machine without git
    assert project._git_state() == {"commit": None, "dirty": None}
