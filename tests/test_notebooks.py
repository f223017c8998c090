"""Every notebook, end to end, as a reader runs it: the quick profile, through the runner, without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from helpers import run

ROOT = Path(__file__).parents[1]
STEMS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) or ["no_notebook_found"]
SECONDS = 60  # what a quick run may take on two cores
OFFLINE = {f"{name}_proxy": "http://127.0.0.1:9" for name in ("http", "https", "HTTP", "HTTPS")}


@pytest.fixture(scope="module", params=STEMS)
def folder(request, tmp_path_factory):
    """The results of one notebook; its data cache is empty and no server can be reached."""
    output = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "helpers.run", request.param, "--profile", "quick", "--output", str(output)]
    environment = {**os.environ, **OFFLINE, "WORKBOOK_DATA": str(output / "data")}
    environment.pop("WORKBOOK_RUN_DIR", None)
    process = subprocess.run(command, cwd=output, env=environment, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr[-4000:]
    return output / request.param


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_every_cell_ran_without_a_warning_left_on_the_page(folder):
    cells = [c for c in nbformat.read(folder / "notebook.ipynb", 4).cells if c.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert [output.evalue for output in outputs if output.output_type == "error"] == []
    told = [output.text for output in outputs if output.get("name") == "stderr"]
    assert [text for text in told if "Warning" in text] == []


def test_figures_are_there_and_show_something(folder, results):
    names = sorted(path.name for path in (folder / "figures").glob("*.png"))
    assert len(names) >= 3
    assert [f"figures/{name}" for name in names] == [figure["file"] for figure in results["figures"]]
    for name in names:
        pixels = np.asarray(Image.open(folder / "figures" / name).convert("L"))
        assert pixels.std() > 1, f"{name} is blank"
        assert (folder / "figures" / name).with_suffix(".svg").stat().st_size > 1000


def test_results_have_numbers_claims_and_provenance(results):
    assert results["metrics"] and results["not_finite"] == []
    assert results["claims"], "a notebook tests at least one claim"
    provenance = results["provenance"]
    for key in ("versions", "data", "device", "wall_seconds", "peak_memory_mb", "date_utc", "cpu_count", "fingerprint"):
        assert provenance[key], key
    assert provenance["data"]["name"] and provenance["data"]["sha256"]
    assert provenance["seed"] is not None


def test_the_quick_profile_is_quick(results):
    seconds = results["provenance"]["wall_seconds"]
    load = os.getloadavg()[0]
    busy = f"; the machine is busy (load {load:.1f} on {os.cpu_count()} processors)" if load > os.cpu_count() else ""
    assert seconds <= SECONDS, f"{seconds:.0f} s, at most {SECONDS}{busy}"


def test_parameters_are_those_that_were_asked_for(results, folder):
    notebook = ROOT / "notebooks" / f"{folder.name}.ipynb"
    assert results["params"] == run.resolve(notebook, "quick", {})[0]


def test_the_report_is_one_page_that_works_offline(folder):
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 3 and "<details" in page
    assert 'src="http' not in page and '<link rel="stylesheet"' not in page
