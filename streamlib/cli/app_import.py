"""Finds the App behind `module:attribute`, and says what is wrong when there is none."""

from __future__ import annotations

import difflib
import importlib
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import streamlib.errors
from streamlib.app import App
from streamlib.errors import AppImportError

_OWN = Path(streamlib.errors.__file__).parent
_LIBRARIES = tuple({str(Path(path)) for path in sysconfig.get_paths().values()})


def load_app(path: str) -> App:
    """The App at `module:attribute` (the attribute may be dotted); the working directory is on the path.

    Raises AppImportError, which names what is missing and the nearest thing there is, and DeclarationError for an app
    whose parts do not fit together.
    """
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise AppImportError(f"{path!r}: an app is named module:attribute, for example shop:app")
    if module_name.endswith(".py") or "/" in module_name:
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise AppImportError(f"{path!r}: name the module, not its file: {dotted}:{attribute}")
    if (here := str(Path.cwd())) not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    module = _import(module_name)
    found: Any = module
    for step in attribute.split("."):
        if not hasattr(found, step):
            raise AppImportError(f"{path!r}: {_no_attribute(module, found, step)}")
        found = getattr(found, step)
    if not isinstance(found, App):
        raise AppImportError(f"{path!r} is a {type(found).__name__}, not a streamlib.App; {_apps_of(module)}")
    found.check_declared()
    return found


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise AppImportError(_no_module(name, error.name)) from error
        raise AppImportError(_failed(name, error)) from error
    except (Exception, SystemExit) as error:
        raise AppImportError(_failed(name, error)) from error


def _no_module(name: str, missing: str) -> str:
    here = Path.cwd()
    parent = here.joinpath(*missing.split(".")[:-1])
    modules = [path.stem for path in parent.glob("*.py") if path.stem != "__init__"]
    modules += [path.parent.name for path in parent.glob("*/__init__.py")]
    near = difflib.get_close_matches(missing.rpartition(".")[2], modules, 1)
    hint = f"did you mean {near[0]!r}?" if near else "start in the directory it lies in, or install its package"
    of = "" if missing == name else f" (of {name!r})"
    return f"no module {missing!r}{of} in {here} or on the Python path; {hint}"


def _failed(name: str, error: BaseException) -> str:
    """What an error inside the user's module says, with the user's last line of its traceback."""
    text = f"importing {name!r} failed: {type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename:
        return f'importing {name!r} failed: {error.msg}\n  File "{error.filename}", line {error.lineno}'
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if _is_users(frame.filename)]
    if not users:
        return text
    last = users[-1]
    return f'{text}\n  File "{last.filename}", line {last.lineno}, in {last.name}\n    {last.line}'


def _is_users(filename: str) -> bool:
    path = Path(filename)
    if filename.startswith("<") or path.is_relative_to(_OWN):
        return False
    return not filename.startswith(_LIBRARIES)


def _no_attribute(module: ModuleType, owner: Any, missing: str) -> str:
    label = f"module {module.__name__!r}" if owner is module else f"{owner!r}"
    near = difflib.get_close_matches(missing, [name for name in dir(owner) if name[0] != "_"], 1)
    hint = f"did you mean {near[0]!r}?" if near else _apps_of(module)
    return f"{label} has no attribute {missing!r}; {hint}"


def _apps_of(module: ModuleType) -> str:
    apps = [name for name, value in vars(module).items() if isinstance(value, App)]
    if apps:
        return f"apps there: {', '.join(f'{module.__name__}:{name}' for name in apps)}"
    return f'{module.__name__} holds no App; make one: app = App("name")'
