"""The package's rooms: imports point one way and never in a circle, and files stay short."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import qsim

PACKAGE = Path(qsim.__file__).parent

#: when an import is done: with the module, when a function is called, or for type checking only
LOAD, CALL, TYPES = "load", "call", "types"

#: Rooms and files, lowest first: each imports only what stands above it in this list, or beside it
#: in its own line. A longer name takes precedence over a shorter one.
ORDER = (
    ("errors",),
    ("",),  # files that lie in no room
    ("catalog",),
    ("profiles",),
    ("traces",),
    ("sim.scheduler",),
    ("sim.engine", "sim.results"),
    ("sim.fleet", "sim.results.streaming"),
    ("scenario",),
    ("sim",),
    ("quality",),
    ("calibrate.recorder",),
    ("calibrate.recordings",),
    ("calibrate.fit", "calibrate.recordings.measured"),
    ("calibrate",),
    ("optimize.economics",),
    ("optimize.search",),
    ("optimize.plan", "optimize.deploy"),
    ("optimize",),
    ("report",),
    ("cli",),
    ("__main__",),
)


@dataclass
class Graph:
    """Who imports whom: ``edges[importer][imported]`` says when."""

    edges: dict[str, dict[str, set[str]]] = field(default_factory=dict)

    def circles(self, *kinds: str) -> list[set[str]]:
        """Sets of modules that reach each other by imports of these kinds (Tarjan, 1972)."""
        graph = {
            a: sorted(b for b, when in to.items() if when & set(kinds))
            for a, to in self.edges.items()
        }
        index: dict[str, int] = {}
        low: dict[str, int] = {}
        stack: list[str] = []
        found: list[set[str]] = []

        def visit(node: str) -> None:
            index[node] = low[node] = len(index)
            stack.append(node)
            for other in graph[node]:
                if other not in index:
                    visit(other)
                    low[node] = min(low[node], low[other])
                elif other in stack:
                    low[node] = min(low[node], index[other])
            if low[node] == index[node]:
                circle = set(stack[stack.index(node) :])
                del stack[stack.index(node) :]
                if len(circle) > 1:
                    found.append(circle)

        for node in graph:
            if node not in index:
                visit(node)
        return sorted(found, key=sorted)


def name_of(path: Path, package: Path) -> str:
    """A module's name without ``qsim.``; the package itself is ``""``."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> Iterator[tuple[str, str, str]]:
    """Every import of qsim: module, name or "" for the module itself, and when."""

    def walk(node: ast.AST, when: str) -> Iterator[tuple[str, str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((a.name, "", when) for a in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, "imports are absolute"
                yield from ((child.module or "", a.name, when) for a in child.names)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(ast.Module(child.body, []), TYPES)
                yield from walk(ast.Module(child.orelse, []), when)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from walk(child, CALL if when == LOAD else when)
            else:
                yield from walk(child, when)

    yield from walk(tree, LOAD)


def read(package: Path) -> Graph:
    """The graph of a package's modules.

    A name that a package hands on (``from qsim.traces import Trace``) counts as an import of the
    module that it comes from. What a package's ``__init__`` imports for type checkers only is the
    list of those names, and no import.
    """
    trees = {name_of(p, package): ast.parse(p.read_text("utf-8")) for p in package.rglob("*.py")}
    packages = {name_of(p, package) for p in package.rglob("__init__.py")}
    handed_on: dict[tuple[str, str], str] = {}
    found: dict[str, list[tuple[str, str, str]]] = {}
    for module, tree in trees.items():
        found[module] = []
        for source, name, when in imports(tree):
            root, _, rest = source.partition(".")
            if root != "qsim":
                continue
            if name and f"{rest}.{name}".strip(".") in trees:
                rest, name = f"{rest}.{name}".strip("."), ""
            if module in packages and when == TYPES:
                handed_on[module, name] = rest
            elif rest in trees:
                found[module].append((rest, name, when))
    graph = Graph({module: {} for module in trees})
    for module, imported in found.items():
        for source, name, when in imported:
            source = handed_on.get((source, name), source)
            # of itself: the package's own constants, such as qsim.__version__
            if source not in (module, ""):
                graph.edges[module].setdefault(source, set()).add(when)
    return graph


def height(module: str) -> int:
    """The line of ORDER that a module belongs to."""
    by_name = {name: i for i, line in enumerate(ORDER) for name in line}
    parts = module.split(".")
    for n in range(len(parts), 0, -1):
        if ".".join(parts[:n]) in by_name:
            return by_name[".".join(parts[:n])]
    if len(parts) == 1 and (PACKAGE / f"{module}.py").exists():
        return by_name[""]
    raise AssertionError(f"qsim.{module} has no place in ORDER: which rooms may import it?")


GRAPH = read(PACKAGE)


def test_no_circle_of_imports() -> None:
    assert GRAPH.circles(LOAD, CALL) == []


def test_types_go_in_circles_within_a_room_only() -> None:
    """Classes that hold each other may name each other's types where they lie side by side."""
    across = [
        sorted(circle)
        for circle in GRAPH.circles(LOAD, CALL, TYPES)
        if len({module.rpartition(".")[0] for module in circle}) > 1
    ]
    assert across == []


def test_no_room_imports_upwards() -> None:
    upwards = [
        f"qsim.{module} imports qsim.{other} ({', '.join(sorted(when))})"
        for module, to in GRAPH.edges.items()
        if module  # the package hands on the names of all rooms
        for other, when in to.items()
        if height(other) > height(module)
    ]
    assert upwards == []


def test_the_graph_is_that_of_the_sources(tmp_path: Path) -> None:
    """A circle, an import in a function, one for types and a name handed on are all seen."""
    files = {
        "__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
        "    from qsim.a import Handed\n",
        "a.py": "import qsim.b\nfrom qsim import __version__\n",
        "b.py": "def f() -> None:\n    from qsim import c\n",
        "c.py": "from typing import TYPE_CHECKING\nfrom qsim import Handed\n"
        "if TYPE_CHECKING:\n    from qsim.d import D\n",
        "d.py": "from qsim.c import C\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    graph = read(tmp_path)
    assert graph.edges == {
        "": {}, "a": {"b": {LOAD}}, "b": {"c": {CALL}}, "c": {"a": {LOAD}, "d": {TYPES}},
        "d": {"c": {LOAD}},
    }  # fmt: skip
    assert graph.circles(LOAD) == []
    assert graph.circles(LOAD, CALL) == [{"a", "b", "c"}]
    assert graph.circles(LOAD, CALL, TYPES) == [{"a", "b", "c", "d"}]
    with pytest.raises(AssertionError, match=r"qsim\.no_such_room has no place"):
        height("no_such_room")


def test_architecture_md_names_files_that_exist() -> None:
    root = PACKAGE.parent
    text = (root / "ARCHITECTURE.md").read_text("utf-8")
    named = re.findall(r"`((?:[\w.]+/)+[\w.]*)`", text)
    assert len(named) > 40
    missing = [n for n in named if not ((root / n).exists() or (PACKAGE / n).exists())]
    assert missing == []
    answers = text.partition("## Where is ...?")[2].partition("## Rules")[0]
    assert len(re.findall(r"^\| [^|]+\? \| `qsim/", answers, re.MULTILINE)) >= 10
