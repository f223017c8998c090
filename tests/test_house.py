"""House rules, checked over the whole repository: how a notebook is built, how the package is layered, how code looks.

Every rule is a function that returns what breaks it, so that the rules themselves are tested, on spoiled notebooks.
"""

import ast
import copy
import json
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from helpers import parameters, report

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = sorted((ROOT / "helpers").rglob("*.py"))
CODE = [*MODULES, *sorted((ROOT / "benchmarks").rglob("*.py"))]
SECTIONS = "Question,What you will see,Data,Idea,Model,Train,Results,What we learned,Explore,Exercises,Sources".split(
    ","
)
# imports run downwards in this order; a new module finds its place here
ORDER = """wording project checks pictures simulate embryo regulation multiome tissue sources bundled tables singlecell
spatial datasets splits features prepare views foreign batches layers negative_binomial likelihoods encoders
priors decoders fusion penalties separation schedules identifiers ontology terms checkpoints models balance
training sweeps studies tuning metrics robustness attribution controls integration fidelity regions knowledge
alignment translation claims annotation learners outcomes perturbation links tasks latents inference
components load generation multimodal ablations cis zoo scenarios crossmodal mosaics mosaic_checks plots
term_plots study_plots translation_plots code_plots track_plots tissue_plots explore parameters report kernels
run""".split()
HEAVY = ["scanpy", "umap", "jax", "sklearn", "matplotlib", "papermill", "nbconvert", "ipywidgets", "IPython", "numba"]
LOADS_DATA = {
    "checks",
    "pictures",
    "simulate",
    "embryo",
    "regulation",
    "multiome",
    "tissue",
    "sources",
    "bundled",
    "tables",
    "singlecell",
    "spatial",
    "datasets",
    "splits",
    "features",
    "prepare",
}
DRAWS = {
    "plots",
    "term_plots",
    "study_plots",
    "translation_plots",
    "code_plots",
    "track_plots",
    "tissue_plots",
    "explore",
}


def read(notebook: Path) -> dict:
    return json.loads(notebook.read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def parsed(cell: dict) -> ast.Module:
    return ast.parse(re.sub(r"^[%!].*$", "", source(cell), flags=re.MULTILINE))


def code_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def section_of(notebook: dict) -> list[str]:
    """The section that each cell is in; a heading belongs to its own section, "" is before the first."""
    current, found = "", []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown" and (titles := headings(source(cell))):
            current = titles[-1]
        found.append(current)
    return found


def headings(text: str) -> list[str]:
    """Second-level headings outside code fences, without what follows a colon."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [re.split(r"\s*[:–—]", title)[0].strip() for title in re.findall(r"^## +(.+)$", prose, re.MULTILINE)]


def lines_of(node: ast.AST) -> int:
    """Lines of a function without its docstring."""
    documented = ast.get_docstring(node) is not None
    text = node.body[0].end_lineno - node.body[0].lineno + 1 if documented else 0
    return node.end_lineno - node.lineno + 1 - text


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


# --- rules for a notebook ------------------------------------------------------------------------------------------


def title_with_number(stem: str, notebook: dict) -> list[str]:
    first = source(notebook["cells"][0]).strip().splitlines()[:1]
    good = first and re.match(rf"# (Notebook )?0*{int(stem[:2])}\b", first[0])
    return [] if good else [f"the first line is {first}, not a title with the notebook's number"]


def sections_in_order(stem: str, notebook: dict) -> list[str]:
    found = [title for cell in notebook["cells"] if cell["cell_type"] == "markdown" for title in headings(source(cell))]
    found = [title for title in found if title not in ("Parameters", "Setup")]
    return [] if found == SECTIONS else [f"sections are {found}, not {SECTIONS}"]


def parameters_before_setup_before_data(stem: str, notebook: dict) -> list[str]:
    cells, sections = notebook["cells"], section_of(notebook)
    given = [k for k, cell in enumerate(cells) if "parameters" in tags(cell)]
    begun = [k for k, cell in enumerate(cells) if cell["cell_type"] == "code" and "project.start(" in source(cell)]
    data = sections.index("Data") if "Data" in sections else 0
    good = len(given) == len(begun) == 1 and given[0] < begun[0] < data
    return [] if good else [f"parameters in cells {given}, project.start in {begun}, Data from {data}"]


def imports_are_short(stem: str, notebook: dict) -> list[str]:
    before = []
    for cell in code_cells(notebook):
        if "parameters" in tags(cell):
            break
        before += code_lines(source(cell))
    return [] if len(before) <= 10 else [f"{len(before)} lines before the parameters, at most 10 imports"]


def outputs_stripped(stem: str, notebook: dict) -> list[str]:
    dirty = [k for k, cell in enumerate(code_cells(notebook)) if cell["outputs"] or cell["execution_count"] is not None]
    widgets = ["widget state in the metadata"] if "widgets" in notebook["metadata"] else []
    return [f"code cell {k} keeps outputs or a count: run nbstripout" for k in dirty] + widgets


def code_is_brief(stem: str, notebook: dict) -> list[str]:
    lengths = [len(code_lines(source(cell))) for cell in code_cells(notebook)]
    total = [] if 80 <= sum(lengths) <= 200 else [f"{sum(lengths)} code lines, not 80 to 200"]
    return total + [f"code cell {k} has {n} lines, at most 25" for k, n in enumerate(lengths) if n > 25]


def no_classes_no_long_functions(stem: str, notebook: dict) -> list[str]:
    found = []
    for cell, section in zip(notebook["cells"], section_of(notebook), strict=True):
        if cell["cell_type"] != "code":
            continue
        tree = parsed(cell)
        found += [f"class {node.name}" for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        long = [f for f in functions(tree) if lines_of(f) > 8]
        found += [f"{f.name} has {lines_of(f)} lines, at most 8" for f in long if section != "Idea"]
    return found


def no_relative_or_machine_paths(stem: str, notebook: dict) -> list[str]:
    return [path for cell in notebook["cells"] for path in machine_paths(source(cell))]


def machine_paths(text: str) -> list[str]:
    return re.findall(r"(?<![\w./])\.\./\S*|(?<![\w.:/])/(?:home|Users|work|root|tmp|scratch|mnt|opt|var)/\S*", text)


def nothing_unpickled(stem: str, notebook: dict) -> list[str]:
    return [fault for cell in code_cells(notebook) for fault in unsafe_loads(parsed(cell))]


def unsafe_loads(tree: ast.AST) -> list[str]:
    """Calls that would run code hidden in a data file."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name, words = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
        unpickles = re.search(r"\b(pickle|dill|joblib|cloudpickle)\.loads?$|\bread_pickle$|\bUnpickler$", name)
        trusting = name == "torch.load" and words.get("weights_only") != "True"
        if unpickles or trusting or words.get("allow_pickle") == "True":
            found.append(f"line {call.lineno}: {ast.unparse(call)}")
    return found


def formulas_can_be_drawn(stem: str, notebook: dict) -> list[str]:
    """Or a reader of report.html without internet sees TeX source."""
    texts = [source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    drawn = [(m[0], report._picture(m)) for text in texts for m in report._MATH.finditer(text)]
    return [tex for tex, picture in drawn if picture != tex and "<img" not in picture]


RULES = [
    title_with_number,
    sections_in_order,
    parameters_before_setup_before_data,
    imports_are_short,
    outputs_stripped,
    code_is_brief,
    no_classes_no_long_functions,
    no_relative_or_machine_paths,
    nothing_unpickled,
    formulas_can_be_drawn,
]


def model_notebook() -> dict:
    """A notebook that keeps every rule, for the rules to be tried on."""

    def code(text, *labels):
        return {
            "cell_type": "code",
            "source": text,
            "outputs": [],
            "execution_count": None,
            "metadata": {"tags": [*labels]},
        }

    def text(content):
        return {"cell_type": "markdown", "source": content, "metadata": {}}

    head = [
        text("# 01 Title\n\n## Question\nWhy?\n\n## What you will see\n- this"),
        code("from helpers import project"),
    ]
    setup = [code("seed: int = 0  # seed", "parameters"), code("run = project.start('01_x', globals())")]
    body = [cell for name in SECTIONS[2:] for cell in (text(f"## {name}: more\n$x^2$"), code("x = 1\n" * 10))]
    return {"cells": head + setup + body, "metadata": {}}


def spoil_title(cells):
    cells[0]["source"] = "# 02 Title\n\n## Question\n\n## What you will see"


def spoil_sections(cells):
    cells[4], cells[6] = cells[6], cells[4]


def spoil_order(cells):
    cells[2], cells[3] = cells[3], cells[2]


def spoil_imports(cells):
    cells[1]["source"] = "import os\n" * 11


def spoil_outputs(cells):
    cells[1]["execution_count"] = 1


def spoil_length(cells):
    cells[5]["source"] = "x = 1\n" * 26


def spoil_functions(cells):
    cells[5]["source"] = "def f():\n" + "    x = 1\n" * 8


def spoil_paths(cells):
    cells[5]["source"] = "open('../data/x.csv')"


def spoil_loading(cells):
    cells[5]["source"] = "torch.load(path)"


def spoil_formula(cells):
    cells[4]["source"] = "## Data\n$\\nosuchthing{x}$"


SPOILS = [
    spoil_title,
    spoil_sections,
    spoil_order,
    spoil_imports,
    spoil_outputs,
    spoil_length,
    spoil_functions,
    spoil_paths,
    spoil_loading,
    spoil_formula,
]


@pytest.mark.parametrize(("rule", "spoil"), list(zip(RULES, SPOILS, strict=True)))
def test_a_rule_finds_what_breaks_it_and_nothing_else(rule, spoil):
    notebook = model_notebook()
    assert rule("01_x", notebook) == []
    spoiled = copy.deepcopy(notebook)
    spoil(spoiled["cells"])
    assert rule("01_x", spoiled) != []


def test_long_functions_are_allowed_in_the_idea_only():
    notebook = model_notebook()
    idea = next(k for k, name in enumerate(section_of(notebook)) if name == "Idea")
    spoil_functions([notebook["cells"][idea + k - 4] for k in range(6)])
    assert no_classes_no_long_functions("01_x", notebook) == []


# --- the notebooks -------------------------------------------------------------------------------------------------


def test_there_are_notebooks_and_they_are_numbered():
    assert NOTEBOOKS, "notebooks/ is empty"
    assert all(re.fullmatch(r"0[1-8]_[a-z0-9_]+", path.stem) for path in NOTEBOOKS)
    assert len({path.stem[:2] for path in NOTEBOOKS}) == len(NOTEBOOKS)
    assert {p.name for p in (ROOT / "notebooks").iterdir()} <= {p.name for p in NOTEBOOKS} | {".ipynb_checkpoints"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_notebooks_keep_the_rule(rule):
    assert {path.stem: faults for path in NOTEBOOKS if (faults := rule(path.stem, read(path)))} == {}


def test_parameters_are_typed_literals_with_comments():
    for path in NOTEBOOKS:
        found = parameters.read_parameters(path)
        assert found, path.stem
        assert [p.name for p in found.values() if not p.comment] == [], f"{path.stem}: parameters without a comment"


@pytest.mark.parametrize("profile", ["quick", "real", "paper"])
def test_profiles_change_known_parameters_only(profile):
    stems = {path.stem for path in NOTEBOOKS}
    given = {path.stem for path in (ROOT / "params" / profile).glob("*")}
    assert given <= stems, f"params/{profile} names notebooks that are not there"
    assert profile != "quick" or given == stems, "every notebook needs a quick profile"
    for path in NOTEBOOKS:
        parameters.resolve(path, profile, {})  # an unknown name or a wrong type raises


# --- the package ---------------------------------------------------------------------------------------------------


def rank(module: str) -> int:
    assert module in ORDER, f"helpers/{module}.py has no place in the order of the modules (tests/test_house.py)"
    return ORDER.index(module)


def module_name(path: Path) -> str:
    return path.relative_to(ROOT / "helpers").parts[0].removesuffix(".py")


def imported_modules(tree: ast.AST) -> set[str]:
    """Modules of `helpers` that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "helpers":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("helpers."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("helpers.")}
    return found


def test_imports_run_downwards():
    upwards = []
    for path in MODULES:
        if (name := module_name(path)) == "__init__":
            assert not imported_modules(ast.parse(path.read_text())), "helpers/__init__.py imports nothing"
            continue
        tree = ast.parse(path.read_text())
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level], f"relative import: {path}"
        higher = {m for m in imported_modules(tree) if m != name and rank(m) > rank(name)}
        upwards += [f"{name} imports {module}" for module in higher]
    assert upwards == []


def test_functions_and_modules_are_short():
    lengths = [
        (lines_of(f), f"{path.name}: {f.name}") for path in MODULES for f in functions(ast.parse(path.read_text()))
    ]
    assert [entry for entry in lengths if entry[0] > 40] == []
    assert statistics.median(n for n, _ in lengths) <= 10
    long = {path.name: n for path in MODULES if (n := len(path.read_text().splitlines())) > 400}
    assert long == {}


def test_no_module_has_a_name_that_says_nothing():
    assert {p.stem for p in CODE} & {"utils", "util", "misc", "common", "base", "core", "helpers", "tools"} == set()


def public(tree: ast.Module) -> list[ast.stmt]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def test_what_is_public_is_documented():
    bare = [f"{p.name}: module" for p in MODULES if not ast.get_docstring(ast.parse(p.read_text()))]
    for path in MODULES:
        tree = ast.parse(path.read_text())
        bare += [f"{path.name}: {node.name}" for node in public(tree) if not ast.get_docstring(node)]
    assert bare == []


def hintless(function: ast.FunctionDef) -> list[str]:
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    names = [a.arg for a in given if a.annotation is None and a.arg not in ("self", "cls")]
    return names + (["return"] if function.returns is None and function.name != "__init__" else [])


def test_public_signatures_have_type_hints():
    found = {}
    for path in MODULES:
        for node in public(ast.parse(path.read_text())):
            members = [m for m in getattr(node, "body", []) if isinstance(node, ast.ClassDef)]
            own = [m for m in members if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")]
            for function in own if isinstance(node, ast.ClassDef) else [node]:
                if missing := hintless(function):
                    found[f"{path.name}: {node.name}.{function.name}"] = missing
    assert found == {}


def test_inheritance_is_one_deep():
    classes = [n for path in MODULES for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef)]
    own = {node.name for node in classes}
    towers = [
        f"{node.name}({ast.unparse(base)})" for node in classes for base in node.bases if ast.unparse(base) in own
    ]
    assert towers == []


def run_python(program: str) -> str:
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_light_modules_import_nothing_heavy():
    there = [name for name in ORDER if name in {module_name(path) for path in MODULES}]
    light = [name for name in there if name not in LOADS_DATA | DRAWS]
    program = f"""
import importlib, sys
for name in {light}:
    importlib.import_module("helpers." + name)
    heavy = [module for module in {HEAVY} if module in sys.modules]
    assert not heavy, f"helpers.{{name}} imports {{heavy}} at its top"
print("light")
"""
    assert len(light) > 10 and run_python(program) == "light\n"


def test_the_runner_answers_without_loading_torch():
    assert run_python("import sys, helpers.run; print('torch' in sys.modules)") == "False\n"


def test_importing_the_package_costs_next_to_nothing():
    program = "import time, torch\nbegan = time.perf_counter()\nimport helpers\nprint(time.perf_counter() - began)"
    assert float(run_python(program)) < 0.5


# --- everything ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_is_content(arguments):
    folders = [name for name in ("helpers", "tests", "notebooks", "benchmarks") if (ROOT / name).is_dir()]
    command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", *folders]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr


def test_nothing_is_unpickled():
    assert {p.name: found for p in CODE if (found := unsafe_loads(ast.parse(p.read_text())))} == {}
    for call in ("pickle.load(f)", "torch.load(f)", "np.load(f, allow_pickle=True)", "pd.read_pickle(f)"):
        assert unsafe_loads(ast.parse(call)), call
    assert unsafe_loads(ast.parse("torch.load(f, weights_only=True); json.load(f); np.load(f)")) == []


def test_no_paths_of_one_machine():
    texts = [p for p in ROOT.glob("*") if p.suffix in (".md", ".toml", ".yml", ".lock") or p.name == "Makefile"]
    texts += [*CODE, *(ROOT / "params").rglob("*.yaml"), *(ROOT / "docs").rglob("*.md"), ROOT / ".ci" / "run"]
    found = {p.name: paths for p in texts if (paths := machine_paths(p.read_text(encoding="utf-8")))}
    assert {name: paths for name, paths in found.items() if any(not path.startswith("..") for path in paths)} == {}


def test_nothing_is_left_undone():
    unfinished = re.compile(r"NotImplementedError|\b(TODO|FIXME|XXX)\b")
    assert [p.name for p in CODE if unfinished.search(p.read_text())] == []
    passed_over = re.compile(r"pytest\.(skip|xfail|importorskip)|mark\.(skip|xfail)")
    tests = [p for p in (ROOT / "tests").rglob("*.py") if p != Path(__file__).resolve()]
    assert [p.name for p in tests if passed_over.search(p.read_text())] == []


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_one_version_of_torch_and_a_lock_that_has_all():
    project = (ROOT / "pyproject.toml").read_text()
    lock = (ROOT / "requirements.lock").read_text()
    texts = [project, lock, (ROOT / "Makefile").read_text(), (ROOT / "environment.yml").read_text()]
    pins = [set(re.findall(r"torch==([^\s\"]+)", text)) for text in texts]
    assert len(pins[0]) == 1 and pins == [pins[0]] * 4
    locked = {normal(name) for name in re.findall(r"^([A-Za-z0-9._-]+)==[^\s;]+", lock, re.M)}
    lists = tomllib.loads(project)["project"]
    needed = [*lists["dependencies"], *lists["optional-dependencies"]["dev"]]
    names = {normal(re.match(r"[A-Za-z0-9._-]+", line)[0]) for line in needed}
    assert len(names) > 20 and names <= locked
    lines = [line for line in lock.splitlines() if line and not line.startswith("#")]
    assert all(re.match(r"[A-Za-z0-9._-]+==[\w.]+( ; .+)?$", line) for line in lines)


def test_ci_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111 and "set -euo pipefail" in script.read_text()
    assert re.search(r"^make test$", script.read_text(), re.M)
