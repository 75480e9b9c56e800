"""The house style, held mechanically: each check is a function that lists breaches.

Every check is also run on a few lines that break it, so that none passes by looking
at nothing.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import json
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import pytest

import dynprune

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dynprune"
EDGE_LIBRARIES = ("matplotlib", "pandas", "sklearn", "scipy", "xarray")
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
# The third column of the word table, as far as it can be a name in code; "importance",
# "loss" and the like are free in prose.
FORBIDDEN = frozenset({
    "sparsity",
    "amount",
    "fraction",
    "pruning_rate",
    "saliency",
    "importance",
    "iteration",
    "iterations",
    "weights_vec",
    "flat_params",
    "grads",
    "objective",
    "eigengap",
    "submodel",
    "reset_epoch",
    "compression",
    "svd_rank",
})
ABSOLUTE = re.compile(
    # not after a letter, a dot, a brace or a slash: those are parts of URLs and paths
    r"(?<![\w.$}/-])/(?:home|root|work|tmp|Users|mnt|opt|srv|var|private)/[\w.]"
    r"|\b[A-Z]:\\(?:Users|Windows)"
)
REGISTRY = re.compile(
    r"artifactory|pypi\.|\bdevpi\b|index[-_]url|download\.pytorch\.org", re.IGNORECASE
)


# -- what is checked ------------------------------------------------------------------


@functools.cache
def modules() -> list[tuple[Path, ast.Module]]:
    return [
        (path.relative_to(ROOT), ast.parse(path.read_text("utf-8")))
        for path in sorted(PACKAGE.rglob("*.py"))
    ]


def committed(*patterns: str) -> list[Path]:
    """Files that git tracks; all files of a tree without git."""
    found = subprocess.run(
        ["git", "ls-files", "-z", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode == 0 and found.stdout:
        names = [ROOT / name for name in found.stdout.split("\0") if name]
        return [path for path in names if path.is_file()]
    chosen = {path for pattern in patterns or ("*",) for path in ROOT.rglob(pattern)}
    hidden = re.compile(r"(^|/)(\.(?!ci|gitignore|pre-commit)|dynprune-studies)")
    return sorted(
        path
        for path in chosen
        if path.is_file() and not hidden.search(str(path.relative_to(ROOT)))
    )


def public() -> Iterator[tuple[str, str, Any]]:
    """Room, name and object of everything in an ``__all__``."""
    for room in ROOMS:
        module = importlib.import_module(f"dynprune.{room}")
        for name in module.__all__:
            yield room, name, getattr(module, name)


def results() -> list[type]:
    """Every class of the package that carries a provenance."""
    found = {
        value
        for path, _ in modules()
        if path.name != "__main__.py"  # it runs the command
        for value in vars(importlib.import_module(dotted(path))).values()
        if dataclasses.is_dataclass(value)
        and isinstance(value, type)
        and value.__module__.startswith("dynprune")
        and "provenance" in {field.name for field in dataclasses.fields(value)}
    }
    return sorted(found, key=lambda kind: kind.__qualname__)


def dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


# -- the checks -----------------------------------------------------------------------


def open_classes(tree: ast.Module) -> list[str]:
    """Classes that are neither abstract nor final.

    Protocols are what users bring; exceptions and enums are caught or compared by
    class; those alone may be neither.
    """
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        bases = {ast.unparse(base).split(".")[-1].split("[")[0] for base in node.bases}
        decorators = {ast.unparse(item).split(".")[-1] for item in node.decorator_list}
        is_abstract = node.name.lstrip("_").startswith("Abstract")
        free = {"Protocol", "Enum"} & bases or any(
            base.endswith(("Exception", "Error", "Warning")) for base in bases
        )
        if is_abstract == ("final" in decorators) and not free:
            found.append(node.name)
    return found


def loose_dataclasses(tree: ast.Module) -> list[str]:
    """Dataclasses that can be changed, or that take any attribute."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        for item in node.decorator_list:
            call = ast.unparse(item)
            if not call.startswith(("dataclass", "dataclasses.dataclass")):
                continue
            if "frozen=True" not in call or "slots=True" not in call:
                found.append(node.name)
    return found


def banned_calls(tree: ast.Module) -> list[str]:
    return [
        f"{node.func.id}() in line {node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"super", "hasattr", "print", "eval", "exec"}
    ]


def relative_imports(tree: ast.Module) -> list[str]:
    return [
        f"from {'.' * node.level}{node.module or ''} in line {node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def private_imports(tree: ast.Module, room: str) -> list[str]:
    """Imports of another room's private files."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        parts = node.module.split(".")
        if parts[0] != "dynprune" or len(parts) < 3 or parts[1] == room:
            continue
        if any(part.startswith("_") for part in parts[2:]):
            found.append(f"{node.module} in line {node.lineno}")
    return found


def vague_raises(tree: ast.Module) -> list[str]:
    """Expected errors of dynprune whose message nobody reads."""
    kinds = {name for name in dynprune.__all__ if name.endswith(("Error", "Warning"))}
    calls = {
        id(item.context_expr): item.optional_vars
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        for item in node.items
    }
    return [
        f"{ast.unparse(node)} in line {node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"pytest.raises", "pytest.warns"}
        and kinds & {ast.unparse(part).split(".")[-1] for part in node.args}
        and not any(keyword.arg == "match" for keyword in node.keywords)
        and calls.get(id(node)) is None
    ]


def edge_imports(tree: ast.Module) -> list[str]:
    """Imports of the edge libraries that run when the module is imported."""
    found = []
    for node in tree.body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [name for name in names if name.split(".")[0] in EDGE_LIBRARIES]
    return found


def forbidden_words(tree: ast.Module) -> list[str]:
    """Functions, classes, parameters and fields with a word the word table forbids."""
    found = []
    for node in ast.walk(tree):
        name = ""
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        if name.lower().strip("_") in FORBIDDEN:
            found.append(f"{name} in line {node.lineno}")
    return found


def docstring_breaches(name: str, thing: Any) -> list[str]:
    """What a public docstring lacks: the docstring, Args, Returns or a parameter."""
    text = inspect.getdoc(thing) or ""
    own = vars(thing).get("__doc__") if isinstance(thing, type) else thing.__doc__
    if not own or not text.split("\n")[0].rstrip().endswith("."):
        return [f"{name}: no docstring that begins with a sentence"]
    signature = inspect.signature(thing)
    wanted = [
        part.name
        for part in signature.parameters.values()
        if part.name not in {"self", "_"} and not part.name.startswith("_")
    ]
    breaches = [
        f"{name}: {part!r} is not in Args"
        for part in wanted
        if not re.search(rf"^    \*{{0,2}}{re.escape(part)}:", text, re.MULTILINE)
    ]
    if wanted and "\nArgs:\n" not in text:
        breaches.append(f"{name}: no Args")
    returns = signature.return_annotation
    silent = returns in {None, "None", inspect.Signature.empty}
    said = isinstance(thing, type) or re.search(r"\n(Returns|Yields):\n", text)
    if not said and not silent:
        breaches.append(f"{name}: no Returns")
    return breaches


def shadows_submodule(room: types.ModuleType) -> list[str]:
    """Public functions with the name of a submodule of their room, private or not."""
    files = {path.stem for path in Path(str(room.__file__)).parent.glob("*.py")}
    return [name for name in room.__all__ if name in files]


def machine_words(text: str) -> list[str]:
    """Absolute paths of a machine, and hosts or options of a package registry."""
    return [match[0] for rule in (ABSOLUTE, REGISTRY) for match in rule.finditer(text)]


def notebook_breaches(notebook: dict[str, Any]) -> list[str]:
    """Code cells that were not run, failed, or show a path or a heavy figure."""
    found = []
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if [cell["execution_count"] for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("not run from top to bottom in a fresh kernel")
    if not any(cell["outputs"] for cell in cells):
        found.append("no outputs")
    if not any("assert" in "".join(cell["source"]) for cell in cells):
        found.append("no assert on its claim")
    for number, cell in enumerate(cells, start=1):
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                found.append(f"cell {number} failed: {output.get('ename')}")
            shown = {"text": output.get("text", "")} | output.get("data", {})
            for kind, value in shown.items():
                content = "".join(value) if isinstance(value, list) else str(value)
                if kind.startswith("image/"):
                    if len(content) * 3 // 4 > 100_000:
                        found.append(f"cell {number} has a figure beyond 100 kB")
                else:
                    found += [f"cell {number}: {w}" for w in machine_words(content)]
    return found


# -- held over the package ------------------------------------------------------------


@pytest.mark.parametrize(
    "check",
    [
        open_classes,
        loose_dataclasses,
        relative_imports,
        edge_imports,
        forbidden_words,
    ],
    ids=lambda check: check.__name__,
)
def test_no_module_breaks_it(check):
    breaches = {str(path): found for path, tree in modules() if (found := check(tree))}
    assert breaches == {}


def test_rooms_import_each_other_by_the_front_door():
    breaches = {
        str(path): found
        for path, tree in modules()
        if len(path.parts) > 2 and (found := private_imports(tree, path.parts[1]))
    }
    assert breaches == {}


def test_every_refusal_is_read():
    breaches = {
        path.name: found
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if (found := vague_raises(ast.parse(path.read_text("utf-8"))))
    }
    assert breaches == {}


def test_no_banned_call_outside_the_command_line():
    breaches = {
        str(path): found for path, tree in modules() if (found := banned_calls(tree))
    }
    command_line = breaches.pop("dynprune/cli.py")  # it is where printing is done
    assert all(found.startswith("print()") for found in command_line)
    assert breaches == {}


def test_results_are_frozen_final_with_slots_and_keywords_only():
    found = results()
    assert len(found) >= 8
    for kind in found:
        parameters = kind.__dataclass_params__
        assert parameters.frozen, kind
        assert all(field.kw_only for field in dataclasses.fields(kind)), kind
        assert "__slots__" in vars(kind), kind
        assert getattr(kind, "__final__", False), kind
        if any("Tensor" in str(field.type) for field in dataclasses.fields(kind)):
            assert not parameters.eq, f"{kind}: tensors have no truth value"
            written = inspect.unwrap(kind.__repr__).__code__.co_filename
            assert written == inspect.getfile(kind), f"repr of {kind} prints tensors"


def test_public_objects_say_what_they_take_and_return():
    breaches = []
    for room, name, thing in public():
        own = isinstance(thing, type) and thing.__module__.startswith("dynprune")
        # what is raised, compared or implemented, but never called
        if own and (
            issubclass(thing, BaseException | Enum) or Protocol in thing.__bases__
        ):
            own = False
            assert inspect.getdoc(thing)
        if own or inspect.isfunction(thing):
            breaches += docstring_breaches(f"{room}.{name}", thing)
    assert breaches == []


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_export_what_they_have_in_sorted_order(room):
    module = importlib.import_module(f"dynprune.{room}")
    assert module.__doc__
    assert shadows_submodule(module) == []
    assert len(set(module.__all__)) == len(module.__all__)
    own = [path.stem for path in (PACKAGE / room).glob("*.py")]
    if room != "core":  # its files are the words of the package
        assert [name for name in own if not name.startswith("_")] == []


def test_no_room_or_file_is_a_drawer():
    names = {path.stem.strip("_") for path in PACKAGE.rglob("*")}
    assert names.isdisjoint({"utils", "helpers", "misc", "common", "tools"})


def test_import_loads_no_edge_library():
    code = (
        "import sys, dynprune; "
        f"print([name for name in {EDGE_LIBRARIES!r} if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "[]"


def test_types_are_shipped():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert (PACKAGE / "py.typed").is_file()
    shipped = project["tool"]["setuptools"]["package-data"]["dynprune"]
    assert "py.typed" in shipped
    data = {path for path in PACKAGE.rglob("*") if path.is_file()}
    others = [
        p for p in data if p.suffix not in {".py", ".pyc"} and p.name != "py.typed"
    ]
    for path in others:
        name = path.relative_to(PACKAGE)
        assert any(name.match(pattern) for pattern in shipped), f"{name} is not shipped"


def test_constraints_pin_what_was_measured():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert "torch==2.13.0" in pins
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    names = [re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins]
    assert len(set(names)) == len(names)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        wanted += [part for part in extra if not part.startswith("dynprune")]
    unpinned = {re.split(r"[><=!~\[ ]", part)[0].lower() for part in wanted} - set(
        names
    )
    assert unpinned - {"pre-commit"} == set()  # its hooks pin themselves


def test_no_committed_file_names_a_machine():
    own = Path(__file__).resolve()
    breaches = {}
    for path in committed():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # a figure
        if path.resolve() != own and (found := machine_words(text)):
            breaches[str(path.relative_to(ROOT))] = found[:3]
    assert breaches == {}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.name
)
def test_notebooks_are_committed_with_outputs(path):
    assert notebook_breaches(json.loads(path.read_text("utf-8"))) == []


def test_there_are_notebooks():
    assert list((ROOT / "notebooks").glob("*.ipynb"))


# -- each check bites -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "source"),
    [
        pytest.param(open_classes, "class A: pass", id="open class"),
        pytest.param(open_classes, "@final\nclass AbstractA(ABC): pass", id="both"),
        pytest.param(
            loose_dataclasses, "@dataclass(slots=True)\nclass A: pass", id="thaw"
        ),
        pytest.param(
            loose_dataclasses, "@dataclass(frozen=True)\nclass A: x: int", id="dict"
        ),
        pytest.param(banned_calls, "super().__init__()", id="super"),
        pytest.param(
            banned_calls, "def f(a):\n    return hasattr(a, 'b')", id="hasattr"
        ),
        pytest.param(banned_calls, "print(1)", id="print"),
        pytest.param(relative_imports, "from . import a", id="relative"),
        pytest.param(edge_imports, "import pandas as pd", id="import pandas"),
        pytest.param(edge_imports, "from scipy.linalg import eigh", id="from scipy"),
        pytest.param(
            functools.partial(private_imports, room="rgflow"),
            "from dynprune.tickets._ticket import Ticket",
            id="back door",
        ),
        pytest.param(
            vague_raises,
            "with pytest.raises(InvalidInputError):\n    f()",
            id="no match",
        ),
        pytest.param(forbidden_words, "def f(*, sparsity): ...", id="parameter"),
        pytest.param(forbidden_words, "def saliency(): ...", id="function"),
        pytest.param(forbidden_words, "class A:\n    iterations: int", id="field"),
    ],
)
def test_source_checks_bite(check, source):
    assert check(ast.parse(source)) != []


def test_docstring_check_bites():
    def bare(x):
        return x

    def half(x: int, *, density: float) -> int:
        """Say something.

        Args:
            x: A number.
        """
        return x + int(density)

    assert docstring_breaches("bare", bare) == [
        "bare: no docstring that begins with a sentence"
    ]
    assert docstring_breaches("half", half) == [
        "half: 'density' is not in Args",
        "half: no Returns",
    ]


def test_room_check_bites(tmp_path):
    room = types.ModuleType("room")
    room.__file__, room.__all__ = str(tmp_path / "__init__.py"), ["fit", "other"]
    (tmp_path / "fit.py").touch()
    assert shadows_submodule(room) == ["fit"]


@pytest.mark.parametrize(
    "text",
    [
        "see /home/" + "someone/project",
        'File "/work/' + 'main/x.py"',
        "--index-" + "url https://x",
        "https://py" + "pi.example.org/simple",
    ],
    ids=str,
)
def test_machine_check_bites(text):
    assert machine_words(text) != []


@pytest.mark.parametrize(
    "text",
    ["#!/usr/bin/env bash", "https://a.org/home/page", ".venv/bin/python", "a/tmp/b"],
    ids=str,
)
def test_machine_check_lets_harmless_text_pass(text):
    assert machine_words(text) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"execution_count": None}, "not run"),
        ({"outputs": []}, "no outputs"),
        ({"source": ["1"]}, "no assert"),
        ({"outputs": [{"output_type": "error", "ename": "KeyError"}]}, "KeyError"),
        (
            {"outputs": [{"output_type": "stream", "text": ["/home/" + "me/x"]}]},
            "/home/",
        ),
        (
            {
                "outputs": [
                    {
                        "output_type": "display_data",
                        "data": {"image/png": "A" * 140_000},
                    }
                ]
            },
            "100 kB",
        ),
    ],
    ids=["unrun", "empty", "no claim", "failed", "path", "heavy"],
)
def test_notebook_check_bites(change, message):
    good = {
        "cell_type": "code",
        "execution_count": 1,
        "source": ["assert True"],
        "outputs": [{"output_type": "stream", "text": ["1\n"]}],
    }
    assert notebook_breaches({"cells": [good]}) == []
    found = notebook_breaches({"cells": [good | change]})
    assert any(message in breach for breach in found)


def test_result_check_sees_the_results():
    names = {kind.__name__ for kind in results()}
    assert {"Ticket", "Run", "Trajectory", "Eigenpairs", "KoopmanModel"} <= names
    assert {"ManifoldReport", "RGFlow", "IMPRun", "Controls"} <= names
    assert dynprune.__all__ == sorted(dynprune.__all__, key=_ruff_order)


def _ruff_order(name: str) -> tuple[int, str]:
    # constants, then classes, then the rest
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)
