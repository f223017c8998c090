"""A sweep does each setting once, whatever interrupts it, and never passes an old result off as a new one."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import models, project, sweeps
from helpers.training import TrainingDiverged, fit

ROOT = Path(__file__).parents[1]
SETTINGS = [{"beta": beta, "seed": seed} for beta in (0.1, 1.0) for seed in range(3)]


def counted(settings=SETTINGS, folder=None, made=None, **options):
    """The results of a sweep, and the settings that were computed for it."""
    done = []

    def train_one(setting):
        done.append(setting)
        return made(setting) if made else {"score": setting["beta"] * setting["seed"], "z": np.full(3, setting["seed"])}

    return sweeps.sweep(settings, train_one, folder, **options), done


def same(a, b):
    return list(a) == list(b) and all(
        (v.dtype == b[k].dtype and v.shape == b[k].shape and v.tobytes() == b[k].tobytes())
        if isinstance(v, np.ndarray)
        else repr(v) == repr(b[k])
        for k, v in a.items()
    )


# --- what is kept --------------------------------------------------------------------------------------------------


def test_every_setting_is_computed_once_and_then_read(tmp_path):
    first, done = counted(folder=tmp_path)
    again, done_again = counted(folder=tmp_path)
    assert done == SETTINGS and done_again == []
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert [r["score"] for r in first] == [0, 0.1, 0.2, 0, 1, 2] and list(first[0]) == ["beta", "seed", "score", "z"]
    assert len(list(tmp_path.iterdir())) == 6


def test_new_settings_are_added_and_order_is_that_of_the_settings(tmp_path):
    counted(SETTINGS[:4], tmp_path)
    results, done = counted(SETTINGS[::-1], tmp_path)
    assert done == SETTINGS[:3:-1]
    assert [(r["beta"], r["seed"]) for r in results] == [(s["beta"], s["seed"]) for s in SETTINGS[::-1]]


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(counted()[1]) == len(counted()[1]) == 6 and list(tmp_path.iterdir()) == []


def test_values_come_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    values = {
        "f8": rng.normal(size=(4, 3)) * 1e-300,
        "f4": rng.normal(size=(2, 3, 4)).astype(np.float32),
        "transposed": np.arange(6).reshape(2, 3).T,
        "strided": np.arange(20)[::3],
        "big_endian": np.arange(3, dtype=">f4"),
        "i1": np.arange(-2, 2, dtype=np.int8),
        "bool": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
        "point": np.array(3.0),
        "nan": np.array([np.nan, -np.inf, -0.0]),
        "number": 0.1 + 0.2,
        "not_a_number": float("nan"),
        "infinite": float("inf"),
        "count": np.int64(2**62 + 1),
        "single": np.float32(0.1),
        "yes": np.bool_(True),
        "text": "Ångström β\n",
        "nothing": None,
    }
    (fresh,), _ = counted([{"seed": 0}], tmp_path, made=lambda _: values)
    (read,), done = counted([{"seed": 0}], tmp_path, made=lambda _: values)
    assert done == [] and same(fresh, read)
    for name, value in values.items():
        np.testing.assert_array_equal(read[name], value, err_msg=name, strict=isinstance(value, str))
    assert read["count"] == 2**62 + 1 and read["yes"] is True and read["single"] == float(np.float32(0.1))


def test_no_file_is_unpickled_and_the_header_is_json(tmp_path):
    counted(SETTINGS[:1], tmp_path)
    raw = next(tmp_path.iterdir()).read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert json.loads(header["__metadata__"]["sweep"])["scalars"] == {"beta": 0.1, "seed": 0, "score": 0.0}


@pytest.mark.parametrize("harm", ["cut", "empty", "bit in the arrays", "bit in the header", "no header", "text"])
def test_a_damaged_file_is_computed_again(tmp_path, harm):
    from safetensors.numpy import save

    first, _ = counted(folder=tmp_path)
    path = sorted(tmp_path.iterdir())[2]
    raw = bytearray(path.read_bytes())
    at = len(raw) - 1 if "arrays" in harm else raw.index(b"sha256") + 12
    raw[at] ^= 1
    whole = {"cut": raw[:-5], "empty": b"", "no header": save({"z": np.ones(2)}), "text": b"not a tensor"}
    path.write_bytes(whole.get(harm, raw))
    with pytest.warns(UserWarning, match=f"{path.name} is damaged .*computed again"):
        again, done = counted(folder=tmp_path)
    assert len(done) == 1 and all(same(a, b) for a, b in zip(first, again, strict=True))
    assert counted(folder=tmp_path)[1] == []


# --- what decides a result -----------------------------------------------------------------------------------------


def test_another_context_is_another_result(tmp_path):
    assert len(counted(folder=tmp_path, context={"data": "abc", "n": 1})[1]) == 6
    assert len(counted(folder=tmp_path, context={"n": 1, "data": "abc"})[1]) == 0
    assert len(counted(folder=tmp_path, context={"data": "abd", "n": 1})[1]) == 6
    assert len(counted(folder=tmp_path)[1]) == 6


def test_changed_code_of_the_package_is_another_result_but_a_changed_plot_is_not(tmp_path, monkeypatch):
    package = tmp_path / "helpers"
    (package / "models").mkdir(parents=True)
    for name in ("models/vae.py", "plots.py", "training.py"):
        (package / name).write_text("x = 1\n")
    monkeypatch.setattr(sweeps, "PACKAGE", package)
    folder = tmp_path / "kept"
    assert len(counted(folder=folder)[1]) == 6
    (package / "plots.py").write_text("x = 2\n")
    assert len(counted(folder=folder)[1]) == 0
    (package / "models" / "vae.py").write_text("x = 2\n")
    assert len(counted(folder=folder)[1]) == 6


NOTEBOOK = """
import numpy as np
data = np.ones(3)
epochs = 20
def scale(x):
    return x * 2  # twice
def train_one(setting):
    done.append(setting)
    return {"score": scale(setting["seed"]) + epochs, "inside": [v for v in data if v in {1, 2}][0] + limit()}
def limit(low=0):
    return low
"""


def as_in_a_notebook(folder, *changes):
    """How many settings are computed after changing a notebook's text."""
    text = NOTEBOOK
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    space = {"__name__": "notebook", "done": []}
    exec(compile(text, f"cell-{time.monotonic_ns()}", "exec"), space)  # a kernel's file names differ from run to run
    sweeps.sweep(SETTINGS, space["train_one"], folder)
    return len(space["done"])


@pytest.mark.parametrize(
    ("change", "n"),
    [
        (("epochs = 20", "epochs = 30"), 6),
        (("x * 2", "x * 3"), 6),
        (('["seed"]) +', '["beta"]) +'), 6),
        (("low=0", "low=1"), 6),
        (("{1, 2}", "{1, 3}"), 6),
        (("# twice", "# two times"), 0),
        (("import numpy as np", "import numpy as np\n\n"), 0),
        (("np.ones(3)", "np.ones(4)"), 0),  # data are named in the context
    ],
)
def test_the_training_function_and_the_numbers_it_uses_decide_too(tmp_path, change, n):
    assert as_in_a_notebook(tmp_path) == 6 and as_in_a_notebook(tmp_path) == 0
    assert as_in_a_notebook(tmp_path, change) == n


def scored(setting, factor, power=1):
    return {"score": factor * setting["seed"] ** power}


def test_arguments_given_beforehand_decide_too(tmp_path):
    names = [sweeps._paths([{}], partial(scored, factor=f, power=p), tmp_path, {}) for f in (1, 2) for p in (1, 2)]
    same_again = sweeps._paths([{}], partial(scored, power=1, factor=1), tmp_path, {})
    assert len({str(n) for n in names}) == 4 and same_again == names[0]


def test_a_name_does_not_depend_on_the_process():
    """Sets are ordered by hash, which Python draws anew in every process."""
    program = """
from helpers import sweeps
print(sweeps._source(lambda s: {"x": s["a"] in {"one", "two", "three"}}, set()))
"""
    found = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", program]
        found.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1 and "one" in found.pop()


# --- interruptions -------------------------------------------------------------------------------------------------

PROGRAM = """
import os, sys, time
from pathlib import Path
import numpy as np
from helpers import sweeps
folder = Path(sys.argv[1])
def train_one(setting):
    with open(folder.parent / "log", "a") as log:
        print(setting["seed"], file=log, flush=True)
    if os.environ["SLOW"] == str(setting["seed"]):
        time.sleep(60)
    return {"z": np.random.default_rng(setting["seed"]).normal(size=1000)}
results = sweeps.sweep([{"seed": s} for s in range(6)], train_one, folder, progress=False)
print(sum(float(r["z"].sum()) for r in results))
"""


def begin(folder, slow):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SLOW": str(slow)}
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def logged(folder):
    log = folder.parent / "log"
    return [int(line) for line in log.read_text().split()] if log.exists() else []


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_sweep_goes_on_with_what_is_missing(tmp_path, ending):
    folder = tmp_path / "kept"
    process = begin(folder, slow=3)
    deadline = time.monotonic() + 60
    while 3 not in logged(folder) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(ending)
    _, fault = process.communicate(timeout=30)
    assert process.returncode != 0 and logged(folder) == [0, 1, 2, 3], fault
    assert len(list(folder.iterdir())) == 3  # whole files only
    out, fault = begin(folder, slow=None).communicate(timeout=60)
    assert logged(folder)[4:] == [3, 4, 5], fault
    expected = sum(np.random.default_rng(s).normal(size=1000).sum() for s in range(6))
    assert float(out) == pytest.approx(expected, rel=1e-12)


# --- failures ------------------------------------------------------------------------------------------------------


def diverging(setting):
    if setting["seed"] == 1:
        raise TrainingDiverged("epoch 3: kl is no longer finite", pd.DataFrame())
    return {"score": 1.0}


def test_a_failing_setting_stops_no_other_and_is_tried_again(tmp_path):
    with pytest.raises(sweeps.SweepFailed, match="2 of 6 settings failed, the others are done") as caught:
        counted(folder=tmp_path, made=diverging)
    assert "{'beta': 0.1, 'seed': 1}: TrainingDiverged: epoch 3: kl is no longer finite" in str(caught.value)
    assert isinstance(caught.value.__cause__, TrainingDiverged) and list(caught.value.errors) == [1, 4]
    assert [r.get("score") for r in caught.value.results] == [1, None, 1, 1, None, 1]
    kept, done = counted(folder=tmp_path, made=diverging, errors="keep")
    assert [s["seed"] for s in done] == [1, 1]
    assert kept[1] == {"beta": 0.1, "seed": 1, "error": "TrainingDiverged: epoch 3: kl is no longer finite"}


def test_many_failures_are_told_in_few_lines():
    def failing(setting):
        raise FloatingPointError(str(setting["seed"]))

    with pytest.raises(sweeps.SweepFailed, match=r"and 7 more$") as caught:
        sweeps.sweep([{"seed": s} for s in range(12)], failing, None)
    assert len(str(caught.value).splitlines()) == 7


def test_a_mistake_in_the_code_ends_at_once_unless_something_succeeded():
    done = []

    def misspelt(setting):
        done.append(setting)
        return {"score": setting["bta"]}

    with pytest.raises(KeyError, match="bta"):
        sweeps.sweep(SETTINGS, misspelt, None, errors="keep")
    assert len(done) == 1
    results, _ = counted(made=lambda s: {"score": {0: 1, 1: 2}[s["seed"]]}, errors="keep")
    assert [r.get("error") for r in results] == [None, None, "KeyError: 2"] * 2


def test_settings_alike_are_an_error():
    with pytest.raises(ValueError, match=r'more than once: \{"beta": 1.0, "seed": 0\}; tell them apart by a seed'):
        counted([{"beta": 1.0, "seed": 0}, {"seed": 0, "beta": 1.0}])
    near = [{"a": v} for v in (1, "1", 1.5, None, True)]
    assert len(counted(near, made=lambda _: {"score": 1})[1]) == 5


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([1, 2], "train_one must return a dict of arrays, numbers and texts, not list"),
        (None, "not NoneType"),
        ({"z": torch.ones(2)}, '"z" is torch.float32: give a numpy array'),
        ({"z": [1, 2]}, '"z" is list: give a numpy array'),
        ({"names": np.array(["a"])}, '"names" is <U1: give a numpy array'),
        ({"things": np.array([None])}, '"things" is object: give'),
        ({"z": np.array([1j])}, '"z" is complex128: give'),
        ({"z": np.ones(2, np.longdouble)}, '"z" is float128: give|"z" is longdouble: give'),
        ({"beta": 2.0}, '"beta" has the name of a setting'),
    ],
)
def test_results_of_another_kind_are_told_at_once(made, message):
    with pytest.raises(ValueError, match=message):
        counted(made=lambda _: made)


def test_settings_and_options_of_another_kind(tmp_path):
    with pytest.raises(ValueError, match="'layers' is no number, text, True/False or None"):
        counted([{"layers": [1, 2]}])
    with pytest.raises(ValueError, match='errors="ignore": choose "raise" or "keep"'):
        counted(errors="ignore")
    with pytest.raises(ValueError, match=r"context must hold JSON values.*ndarray"):
        counted(folder=tmp_path, context={"x": np.ones(2)})


def test_a_folder_that_the_runner_clears_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_RUN_DIR", str(tmp_path / "quick" / ".03.partial"))
    with pytest.raises(ValueError, match=r"cleared before the next: give run\.kept"):
        counted(folder=tmp_path / "quick" / ".03.partial" / "sweep")
    assert len(counted(folder=project.kept_beside(tmp_path / "quick" / ".03.partial"))[1]) == 6


def test_a_file_in_the_place_of_the_folder_is_told_before_anything_is_computed(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="a part of this path is a file"):
        counted(folder=tmp_path / "file")


# --- what one sees -------------------------------------------------------------------------------------------------


def test_one_bar_counts_what_is_there_and_is_quiet_in_a_headless_run(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WORKBOOK_RUN_DIR", raising=False)
    counted(SETTINGS[:4], tmp_path, progress=False)
    assert capsys.readouterr().err == ""
    counted(folder=tmp_path, label="fits of Ontix")
    shown = capsys.readouterr().err
    assert "fits of Ontix" in shown and "4/6" in shown and "6/6" in shown
    monkeypatch.setenv("WORKBOOK_RUN_DIR", str(tmp_path / "run"))
    counted()
    assert capsys.readouterr().err == ""


def test_the_table_has_settings_first_and_no_arrays():
    results, _ = counted(made=lambda s: diverging(s) | {"z": np.ones(2)}, errors="keep")
    table = sweeps.table(results)
    assert list(table.columns) == ["beta", "seed", "score", "error"] and len(table) == 6
    assert table.score.isna().tolist() == table.error.notna().tolist() == [False, True, False] * 2
    assert list(sweeps.table(results, "seed", "score").columns) == ["seed", "score"]
    with pytest.raises(ValueError, match="hold no scalar 'z'; there are 'beta', 'seed', 'score', 'error'"):
        sweeps.table(results, "z")


def test_models_are_the_same_whether_a_sweep_is_interrupted_or_not(tmp_path, two_modalities):
    def train_one(setting):
        torch.manual_seed(setting["seed"])
        model = models.varix({"rna": 30, "protein": 20}, 2)
        fit(model, two_modalities, epochs=2, batch_size=64, seed=setting["seed"], device="cpu", progress=False)
        return {"w": model.encoders[0].head.weight.detach().numpy()}

    settings = [{"seed": s} for s in range(3)]
    whole = sweeps.sweep(settings, train_one, None, progress=False)
    sweeps.sweep(settings[1:2], train_one, tmp_path, progress=False)
    assert all(same(a, b) for a, b in zip(whole, sweeps.sweep(settings, train_one, tmp_path), strict=True))
