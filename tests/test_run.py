"""The runner: strict parameters, whole results or none, and errors that say where. Notebooks here are tiny."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from helpers import kernels, parameters, project, report, run

PARAMETERS = """seed: int = 0  # of everything random
rate: float = 1  # learning rate
betas: list[float] = [0.1, 1]  # weights of the KL term
modalities: list[str] = []  # none: all
dataset: str = "sim"  # name or path
verbose: bool = False  # talk"""
START = "from helpers import project\nrun = project.start('{stem}', globals())"
FIGURE = (
    "import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\nax.plot([1, 2])\nrun.figure(fig, 'line', alt='a line')"
)
SAVE = "import os\nrun.save_results({'seed': seed, 'threads': int(os.environ.get('OMP_NUM_THREADS', 0))})"
MARK = "import os, pathlib, time\npathlib.Path(os.environ['WORKBOOK_RUN_DIR'], 'begun').write_text('')\ntime.sleep(60)"


def write_notebook(root: Path, stem: str, *cells: str) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(r"# Loss $\beta \, \mathrm{KL}$")])
    notebook.cells.append(nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}))
    notebook.cells += [nbformat.v4.new_code_cell(cell.replace("{stem}", stem)) for cell in cells]
    path = root / "notebooks" / f"{stem}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def write_profile(root: Path, stem: str, text: str, profile: str = "quick") -> None:
    path = root / "params" / profile / f"{stem}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "helpers.run", *arguments]


def environment(root: Path) -> dict[str, str]:
    return {**os.environ, "WORKBOOK_ROOT": str(root), "PYTHONPATH": str(kernels.PACKAGE.parent)}


def start_run(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    """From a folder that has nothing to do with the workbook."""
    elsewhere = root / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    return subprocess.run(
        command(*arguments), cwd=elsewhere, env=environment(root), capture_output=True, text=True, timeout=120
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project of two notebooks that are never executed."""
    for stem in ("01_first", "02_second"):
        write_notebook(tmp_path, stem, START, SAVE)
    write_profile(tmp_path, "01_first", "seed: 5\nrate: 1e-4\n")
    monkeypatch.setattr(project, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A project after `run all --jobs 2`: one notebook is good, one fails, one forgets its results."""
    root = tmp_path_factory.mktemp("a {strange} $folder")
    write_notebook(root, "01_good", START, FIGURE, SAVE)
    write_notebook(root, "02_fails", "\nx = 1 / seed", "y = 1")
    write_notebook(root, "03_forgets", "x = 1")
    write_profile(root, "01_good", "seed: 3\n")
    return root, start_run(root, "all", "--jobs", "2")


# --- parameters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("int", 3, 3),
        ("float", 3, 3.0),
        ("float", "1e-4", 1e-4),
        ("bool", True, True),
        ("str", "a", "a"),
        ("list[float]", [1, "2e-1"], [1.0, 0.2]),
        ("list[str]", [], []),
    ],
)
def test_convert_accepts_the_declared_type(kind, value, expected):
    converted = parameters.convert(kind, value)
    assert converted == expected and type(converted) is type(expected)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int", 3.0),
        ("int", True),
        ("int", "3"),
        ("float", True),
        ("float", "fast"),
        ("bool", 1),
        ("str", 1),
        ("list[int]", [1, 2.5]),
        ("list[str]", "rna"),
        ("dict", {}),
        ("int", None),
    ],
)
def test_convert_refuses_another_type(kind, value):
    with pytest.raises(TypeError):
        parameters.convert(kind, value)


def test_parameters_are_read_with_type_default_and_comment(root):
    found = parameters.read_parameters(root / "notebooks" / "01_first.ipynb")
    assert list(found) == ["seed", "rate", "betas", "modalities", "dataset", "verbose"]
    assert found["rate"] == parameters.Parameter("rate", "float", 1.0, "learning rate")
    assert isinstance(found["rate"].default, float)


@pytest.mark.parametrize("line", ["n = 3", "n: int = 2 + k", "n: int", "n: dict = {}", "n: int = 1.5", "import os"])
def test_a_parameters_cell_holds_typed_literals_only(tmp_path, line):
    path = write_notebook(tmp_path, "01_x")
    notebook = nbformat.read(path, 4)
    notebook.cells[1].source = f"seed: int = 0\n{line}"
    nbformat.write(notebook, path)
    with pytest.raises(ValueError, match=r"01_x\.ipynb, parameters cell, line 2"):
        parameters.read_parameters(path)


def test_command_line_beats_profile_beats_notebook(root):
    path = root / "notebooks" / "01_first.ipynb"
    final, standard = parameters.resolve(path, "quick", {"rate": "2"})
    assert (standard["seed"], standard["rate"], standard["dataset"]) == (5, 1e-4, "sim")
    assert (final["seed"], final["rate"], final["dataset"]) == (5, 2.0, "sim")
    assert parameters.resolve(path, "defaults", {})[0]["seed"] == 0


def test_texts_of_the_command_line_become_the_declared_types(root, monkeypatch):
    path = root / "notebooks" / "01_first.ipynb"
    given = {"betas": "[0, 1e-2]", "verbose": "true", "dataset": "no", "modalities": "[rna, cnv]", "seed": "7"}
    final, _ = parameters.resolve(path, "quick", given)
    assert final["betas"] == [0.0, 0.01] and final["verbose"] is True and final["seed"] == 7
    assert final["dataset"] == "no" and final["modalities"] == ["rna", "cnv"]  # text stays text
    (root / "mine.h5mu").write_text("")
    monkeypatch.chdir(root)
    assert parameters.resolve(path, "quick", {"dataset": "mine.h5mu"})[0]["dataset"] == str(root / "mine.h5mu")


def test_an_unknown_name_stops_everything_and_names_the_closest(root, capsys):
    write_profile(root, "02_second", "sede: 1\n")
    assert run.main(["all", "-p", "betsa=[1]"]) == 2
    told = capsys.readouterr().err
    assert "unknown parameter \"betsa\" (-p); did you mean 'betas'?" in told
    assert "unknown parameter \"sede\" (params/quick); did you mean 'seed'?" in told
    assert "betas: list[float] = [0.1, 1.0]" in told and "weights of the KL term" in told
    assert not (root / "runs").exists()


@pytest.mark.parametrize("given", ["seed=1.5", "rate=fast", "betas=0.5", "verbose=2", "modalities=rna"])
def test_a_wrong_type_stops_everything(root, capsys, given):
    assert run.main(["01", "-p", given]) == 2
    told = capsys.readouterr().err
    name, _, text = given.partition("=")
    assert f'parameter "{name}" (-p) needs' in told and text in told
    assert not (root / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["07"], 'unknown notebook "07"'),
        (["01_frist"], "did you mean '01_first'?"),
        (["01", "--profile", "quik"], "did you mean 'quick'?"),
        (["01", "-p", "seed"], "write -p NAME=VALUE"),
        (["01", "--jobs", "0"], "--jobs needs"),
    ],
)
def test_a_wrong_command_ends_with_2(root, capsys, arguments, told):
    assert run.main(arguments) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("text", ["seed: [1", "- seed\n- rate\n"])
def test_a_broken_profile_ends_with_2(root, capsys, text):
    write_profile(root, "01_first", text)
    assert run.main(["01"]) == 2
    assert "01_first.yaml" in capsys.readouterr().err


def test_notebooks_go_by_number_stem_or_path_and_only_once(root):
    stems = [p.stem for p in run.choose_notebooks(["2", "notebooks/01_first.ipynb", "02", "all"])]
    assert stems == ["02_second", "01_first"]


def test_list_parameters_prints_the_documentation(root, capsys):
    assert run.main(["--list-parameters", "01"]) == 0
    assert re.search(r"seed: int = 0 +of everything random", capsys.readouterr().out)


# --- folders and fingerprints --------------------------------------------------------------------------------------


def test_a_variation_gets_a_folder_of_its_own(root):
    path = root / "notebooks" / "01_first.ipynb"
    names = [run.plan(path, "quick", given, None).name for given in ({}, {"seed": "5"}, {"seed": "6"}, {"seed": "7"})]
    assert names[0] == names[1] == "01_first"
    assert len({*names}) == 3 and all(name.startswith("01_first@") for name in names[2:])
    assert run.plan(path, "quick", {"seed": "6"}, root / "here").folder == root / "here" / "01_first"


def test_the_fingerprint_follows_all_that_decides_a_result(root, monkeypatch, tmp_path):
    path = root / "notebooks" / "01_first.ipynb"
    data = root / "mine.h5mu"
    data.write_text("a")
    seen = [run.fingerprint(path, {"seed": 1}), run.fingerprint(path, {"seed": 2})]
    seen.append(run.fingerprint(path, {"seed": 1, "dataset": str(data)}))
    data.write_text("ab")
    seen.append(run.fingerprint(path, {"seed": 1, "dataset": str(data)}))
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("x = 1")
    monkeypatch.setattr(run, "PACKAGE", package)
    seen.append(run.fingerprint(path, {"seed": 1}))
    (package / "a.py").write_text("x = 2")
    seen.append(run.fingerprint(path, {"seed": 1}))
    write_notebook(root, "01_first", START)
    seen.append(run.fingerprint(path, {"seed": 1}))
    assert len(set(seen)) == len(seen)
    assert run.fingerprint(path, {"seed": 1}) == seen[-1]


def test_a_folder_that_cannot_be_written_to_ends_with_2(root, capsys, monkeypatch):
    (root / "file").write_text("")
    assert run.main(["01", "--output", str(root / "file")]) == 2
    assert "is a file, not a folder" in capsys.readouterr().err

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(project.os, "open", refuse)
    assert run.main(["01"]) == 2
    assert "read-only" in capsys.readouterr().err


def test_two_runs_do_not_write_to_one_folder(root, capsys):
    job = run.plan(root / "notebooks" / "01_first.ipynb", "quick", {}, None)
    with run.reserved(job):
        assert run.main(["01"]) == 2
    assert "another run is writing" in capsys.readouterr().err


def test_a_result_lost_between_two_renames_comes_back(root):
    job = run.plan(root / "notebooks" / "01_first.ipynb", "quick", {}, None)
    job.folder.mkdir(parents=True)
    (job.folder / "results.json").write_text("old")
    os.replace(job.folder, job.folder.with_name(".01_first.old"))
    with run.reserved(job):
        assert (job.folder / "results.json").read_text() == "old"
        job.partial.mkdir()
        (job.partial / "results.json").write_text("new")
        run.swap_in(job)
    assert contents(job.folder) == {"results.json": b"new"}
    assert not job.partial.exists() and not job.folder.with_name(".01_first.old").exists()


# --- executions ----------------------------------------------------------------------------------------------------


def test_a_good_notebook_leaves_everything(executed):
    root, process = executed
    folder = root / "runs" / "quick" / "01_good"
    whole = {"notebook.ipynb", "report.html", "results.json", "figures/01_line.png", "figures/01_line.svg"}
    assert set(contents(folder)) == whole
    results = json.loads((folder / "results.json").read_text())
    assert results["params"]["seed"] == results["metrics"]["seed"] == results["provenance"]["seed"] == 3
    assert set(results["provenance"]["files"]) == whole and len(results["provenance"]["fingerprint"]) == 64
    assert re.search(r"01_good +\d+ +seed 3, .*report\.html +done", process.stdout)


def test_jobs_at_the_same_time_share_the_processors(executed):
    results = json.loads((executed[0] / "runs" / "quick" / "01_good" / "results.json").read_text())
    assert results["metrics"]["threads"] == max(1, run._cores() // 2)


def test_the_report_works_offline_and_hides_nothing(executed):
    page = (executed[0] / "runs" / "quick" / "01_good" / "report.html").read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert 'alt="a line"' in page and "data:image/png;base64," in page
    assert "<details" in page and "save_results" in page and "learning rate" in page
    assert page.count("data:image/svg+xml;base64,") == 1  # the formula
    assert page.count("data:image/png;base64,") == 1  # shown once


def test_a_failing_notebook_says_where_and_the_others_run(executed):
    root, process = executed
    assert process.returncode == 1
    assert 'In [2], "x = 1 / seed"' in process.stderr and "ZeroDivisionError: division by zero" in process.stderr
    assert len(process.stderr.splitlines()) < 60
    failed = root / "runs" / "quick" / "02_fails.failed"
    outputs = [c.get("outputs") for c in nbformat.read(failed / "notebook.ipynb", 4).cells if c.cell_type == "code"]
    assert any(output["output_type"] == "error" for output in outputs[1]) and outputs[2] == []
    assert not (root / "runs" / "quick" / "02_fails").exists()
    assert re.search(r"02_fails .* failed", process.stdout) and re.search(r"01_good .* done", process.stdout)


def test_a_notebook_without_results_has_failed(executed):
    root, process = executed
    assert "03_forgets failed" in process.stderr and "wrote no results.json" in process.stderr
    assert not (root / "runs" / "quick" / "03_forgets").exists()


def test_unchanged_is_skipped_changed_is_run_failed_leaves_the_old(executed):
    root, _ = executed
    folder = root / "runs" / "quick" / "01_good"
    before = contents(folder)
    again = start_run(root, "01")
    assert again.returncode == 0 and "unchanged" in again.stdout and contents(folder) == before

    (folder / "figures" / "01_line.png").unlink()  # no longer whole
    write_profile(root, "01_good", "seed: 4\n")
    changed = start_run(root, "01")
    assert changed.returncode == 0 and "done" in changed.stdout
    whole = contents(folder)
    assert set(whole) == set(before) and json.loads(whole["results.json"])["metrics"]["seed"] == 4

    write_notebook(root, "01_good", "raise SystemExit(3)")
    failed = start_run(root, "01")
    assert failed.returncode == 1 and "SystemExit" in failed.stderr
    assert contents(folder) == whole and (folder.with_name("01_good.failed") / "notebook.ipynb").is_file()


def test_a_missing_file_makes_an_earlier_run_incomplete(root):
    job = run.plan(root / "notebooks" / "01_first.ipynb", "quick", {}, None)
    job.folder.mkdir(parents=True)
    (job.folder / "report.html").write_text("")
    record = {"provenance": {"fingerprint": job.fingerprint, "files": ["report.html"]}}
    (job.folder / "results.json").write_text(json.dumps(record))
    assert run.earlier_results(job) == record
    (job.folder / "report.html").unlink()
    assert run.earlier_results(job) is None
    (job.folder / "results.json").write_text('{"provenance": {')
    assert run.earlier_results(job) is None


def test_a_kernel_that_is_killed_is_reported(tmp_path):
    write_notebook(tmp_path, "01_dies", "import os\nos.kill(os.getpid(), 9)")
    write_profile(tmp_path, "01_dies", "")
    process = start_run(tmp_path, "01")
    assert process.returncode == 1
    assert 'In [2], "import os"' in process.stderr and "kernel died" in process.stderr


@pytest.mark.parametrize(
    ("number", "code", "left"), [(signal.SIGKILL, -9, {".01_slow.partial"}), (signal.SIGINT, 130, set())]
)
def test_an_interrupted_run_leaves_nothing_that_looks_whole(tmp_path, number, code, left):
    write_notebook(tmp_path, "01_slow", MARK)
    write_profile(tmp_path, "01_slow", "")
    runs = tmp_path / "runs" / "quick"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    process = subprocess.Popen(command("01"), env=environment(tmp_path), **quiet)
    deadline = time.monotonic() + 30
    while not (runs / ".01_slow.partial" / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) == code
    assert {p.name for p in runs.iterdir()} - {".01_slow.lock"} == left
    with run.reserved(run.Job(Path(), {}, {}, runs / "01_slow", "")):  # the lock died with its owner
        assert not (runs / "01_slow").exists()


def test_kernels_leave_the_environment_as_it_was(monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", "/somewhere")
    monkeypatch.delenv("JUPYTER_RUNTIME_DIR", raising=False)
    with contextlib.suppress(RuntimeError), kernels.home() as folder:
        assert os.environ["JUPYTER_PATH"] == f"{folder}{os.pathsep}/somewhere"
        raise RuntimeError
    assert os.environ["JUPYTER_PATH"] == "/somewhere" and "JUPYTER_RUNTIME_DIR" not in os.environ
    assert not folder.exists()


def test_formulas_are_drawn_and_code_and_prices_are_not():
    source = "`$x$` costs $5 or $6, $\\mu^2$ and\n\n$$\\sum_i z_i$$\n\n```\n$y$\n```\n$\\nosuchthing{x}$"
    drawn = report._MATH.sub(report._picture, source)
    assert drawn.count("<img") == 2 and 'alt="\\mu^2"' in drawn and 'class="display-math"' in drawn
    assert "`$x$` costs $5 or $6" in drawn and "$y$" in drawn
    assert "<code>\\nosuchthing{x}</code>" in drawn


@pytest.mark.parametrize(
    ("tex", "images"),
    [
        (r"$\mathcal N(\mu, \sigma^2)$", 1),
        (r"$\mathcal{N}(0, I)$", 1),
        ("$$\\tfrac12 \\sum_j\n\\left(\\mu_j^2 - 1\\right)$$", 1),
        (r"$\frac{a}{b}$", 1),
        (r"$$\begin{aligned} a &= b \\ c &= \dfrac34 \end{aligned}$$", 2),
        (r"$\sqrt x$", 1),
    ],
)
def test_common_ways_to_write_tex_are_drawn(tex, images):
    assert report._MATH.sub(report._picture, tex).count("<img") == images


def test_pieces_of_long_work_outlive_a_failed_run_and_leave_with_a_whole_one(tmp_path):
    """What a notebook puts into `run.kept` is there for the next run; a whole run and --force take it away."""
    count = "run.kept.mkdir(exist_ok=True)\nseen = len(list(run.kept.iterdir()))\n(run.kept / str(seen)).touch()"
    end = "run.save_results({'seen': seen})\nassert seen == 2, seen"
    notebook = write_notebook(tmp_path, "01_first", START, count, end)
    kept = tmp_path / "runs" / "quick" / ".01_first.kept"
    write_profile(tmp_path, "01_first", "seed: 5\n")
    assert [start_run(tmp_path, "01").returncode for _ in range(2)] == [1, 1] and len(list(kept.iterdir())) == 2
    assert start_run(tmp_path, "01").returncode == 0 and not kept.exists()
    write_notebook(tmp_path, notebook.stem, START, count, "x = 1 / seen")
    assert [start_run(tmp_path, "01", "--force").returncode for _ in range(2)] == [1, 1]
    assert len(list(kept.iterdir())) == 1
