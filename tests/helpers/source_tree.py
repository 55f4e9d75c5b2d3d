"""Reads the project's own sources with `ast`: modules, floors, imports, functions."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("streamlib", "workers")

# Longest prefix wins. `streamlib` itself is the public face: it gathers names and stands above the app.
FLOORS = {
    "streamlib": 4,
    "streamlib.__main__": 4,
    **{
        f"streamlib.{word}": 0
        for word in (
            "errors",
            "event",
            "message",
            "codec",
            "data",
            "keys",
            "retry",
            "settings",
            "topic",
            "versions",
            "finite",
            "logs",
            "read_model",
        )
    },
    "streamlib.redisio": 1,
    "streamlib.worker": 2,
    "streamlib.eventsourcing": 2,
    "streamlib.ops": 2,
    "streamlib.metrics": 2,
    "streamlib.app": 3,
    "streamlib.connected": 3,
    "streamlib.lifespan": 3,
    "streamlib.blocking": 3,
    "streamlib.producer": 3,
    "streamlib.embedded": 3,
    "streamlib.bench": 3,
    "streamlib.testing": 3,
    "streamlib.cli": 4,
    "streamlib.ui": 4,
    "workers": 5,
}


@dataclass(frozen=True)
class Import:
    """One imported module: where, and whether it stands inside a function."""

    module: str
    line: int
    in_function: bool


@dataclass(frozen=True)
class Module:
    """One Python file of the project."""

    path: Path

    @cached_property
    def source(self) -> str:
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, str(self.path))

    @property
    def relative(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def name(self) -> str:
        """The dotted name; a package's `__init__` has the package's."""
        parts = self.path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def package(self) -> str:
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]

    @cached_property
    def imports(self) -> list[Import]:
        return list(_imports(self.tree, self.package, in_function=False))

    @cached_property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def modules(*folders: str) -> list[Module]:
    """Every Python file under the given top-level folders."""
    return [Module(path) for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def floor_of(name: str) -> int | None:
    """The floor of a dotted name; None when no floor is agreed for it."""
    if name == "streamlib":
        return FLOORS[name]
    while name and name != "streamlib":
        if name in FLOORS:
            return FLOORS[name]
        name = name.rpartition(".")[0]
    return None


def _imports(node: ast.AST, package: str, *, in_function: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, in_function)
        elif isinstance(child, ast.ImportFrom):
            base = _absolute(child, package)
            for alias in child.names:
                yield Import(_submodule_or(base, alias.name), child.lineno, in_function)
        else:
            inner = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _imports(child, package, in_function=inner)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = ".".join(parts[: len(parts) - node.level + 1])
    return f"{base}.{node.module}" if node.module else base


def _submodule_or(base: str, name: str) -> str:
    """`from package import name` imports `package.name` when that is a module, else `package`."""
    if base.split(".")[0] not in (*PACKAGES, "tests"):
        return base
    path = ROOT.joinpath(*base.split("."), name)
    return f"{base}.{name}" if path.with_suffix(".py").exists() or (path / "__init__.py").exists() else base
