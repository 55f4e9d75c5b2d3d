"""The README is true: its app loads, its commands run as they stand, its promises name tests that exist."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
BLOCKS = [(match[1], match[2]) for match in _BLOCK.finditer(README)]


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCKS if found == language]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A fresh folder with what the README says to write there, and `streamlib` on the PATH."""
    (tmp_path / "shop.py").write_text(blocks("python")[0])
    (tmp_path / "orders.jsonl").write_text(blocks("json")[0])
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "streamlib"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m streamlib "$@"\n')
    command.chmod(0o755)
    return tmp_path


def in_shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMLIB_")}
    path = f"{folder / 'bin'}{os.pathsep}{inherited.get('PATH', '')}"
    return subprocess.run(
        ["bash", "-euxc", script],
        cwd=folder,
        env=inherited | {"PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_the_first_app_runs_as_written(shop: Path) -> None:
    (session,) = [text for text in blocks("console") if "check shop:app" in text and "publish" in text]
    script = session.replace("--burst\n", "--burst --http 127.0.0.1:0\n")  # the default port may be taken here
    done = in_shell(script, shop)
    assert done.returncode == 0, done.stderr
    assert "published=3 duplicates=0" in done.stdout
    assert "negative total" in done.stdout
    assert "exported=1" in done.stdout
    assert "replayed=1" in done.stdout
    assert "purged=1" in done.stdout


def test_the_operator_commands_run_as_written(shop: Path) -> None:
    (first,) = [text for text in blocks("console") if "check shop:app" in text and "publish" in text]
    (session,) = [text for text in blocks("console") if "groups pause" in text]
    prepare = "\n".join(line for line in first.splitlines() if line.startswith(("export", "streamlib publish")))
    done = in_shell(f"{prepare}\n{session}", shop)
    assert done.returncode == 0, done.stderr
    assert "created=orders:audit kind=handler" in done.stdout
    assert "paused=true changed=true" in done.stdout
    assert "paused=false changed=true" in done.stdout
    assert "archived=0" in done.stdout
    assert "would_replay=0 not_delivered=3" in done.stdout
    assert "replayed=0" in done.stdout
    assert "written=3" in done.stdout


def test_the_doctor_runs_as_written(shop: Path) -> None:
    (session,) = [text for text in blocks("console") if "streamlib doctor" in text]
    done = in_shell(f"export STREAMLIB_REDIS_URL=embedded://data\n{session}", shop)
    assert done.returncode == 0, done.stderr
    assert "it has no replica" in done.stdout
    assert "0 DANGER" in done.stderr


def test_the_rebuild_runs_as_written(shop: Path) -> None:
    (first,) = [text for text in blocks("console") if "check shop:app" in text and "publish" in text]
    (session,) = [text for text in blocks("console") if "streamlib rebuild" in text]
    prepare = "\n".join(line for line in first.splitlines() if line.startswith(("export", "streamlib publish")))
    done = in_shell(f"{prepare}\nstreamlib run shop:app --burst --no-http\n{session}", shop)
    assert done.returncode == 0, done.stderr
    assert "switched=true" in done.stdout
    assert "equal=true rows=2" in done.stdout
    assert "live=1 kept=2" in done.stdout
    assert "live=2 kept=1" in done.stdout
    assert "keys_deleted=" in done.stdout


def test_the_python_examples_run(shop: Path) -> None:
    usage = blocks("python")[1]
    calls = "\n\nimport asyncio\nasyncio.run(main())\nfrom_django_or_a_script()\n"
    (shop / "use.py").write_text(f"from shop import *\nfrom shop import app, order_view, orders\n\n{usage}{calls}")
    done = in_shell("export STREAMLIB_REDIS_URL=embedded://data\npython_of_tests use.py", _with_python(shop))
    assert done.returncode == 0, done.stderr


def test_the_example_of_order_and_scale_runs(shop: Path) -> None:
    (example,) = [text for text in blocks("python") if "app.rekey" in text]
    words = "from decimal import Decimal\nfrom streamlib import App, Context, Event\n\napp = App('scale')\n"
    (shop / "scale.py").write_text(words + example)
    done = in_shell("export STREAMLIB_REDIS_URL=embedded://data\nstreamlib run scale:app --burst --no-http", shop)
    assert done.returncode == 0, done.stderr


def test_the_example_of_event_sourcing_runs(shop: Path) -> None:
    (example,) = [text for text in blocks("python") if "app.repository" in text]
    calls = "\n\nif __name__ == '__main__':\n    import asyncio\n    asyncio.run(main())\n"
    (shop / "bank.py").write_text(example + calls)
    worker = "streamlib run bank:app --no-http & worker=$!"
    session = (
        f"export STREAMLIB_REDIS_URL=embedded://data\n{worker}\npython_of_tests bank.py\nkill $worker\nwait $worker"
    )
    done = in_shell(session, _with_python(shop))
    assert done.returncode == 0, done.stderr
    rows = [f"BalanceRow(account_id='acc-{n}', balance=Decimal('{amount}'))" for n, amount in ((1, 30), (2, 5))]
    assert done.stdout.strip() == f"True 2 {' '.join(rows)}"


def test_the_schemas_are_as_written(shop: Path) -> None:
    (example,) = [text for text in blocks("python") if "app.upcast" in text]
    (session,) = [text for text in blocks("console") if "schema check" in text]
    done = in_shell(session, shop)
    assert done.returncode == 0, done.stderr
    assert "nothing has changed since schemas.json was written" in done.stderr
    with (shop / "shop.py").open("a") as file:
        file.write(f"\n\n{example}")
    done = in_shell(session.splitlines()[-1], shop)
    assert done.returncode == 0, done.stderr
    assert "topic added" in done.stdout


def test_the_testing_example_runs(shop: Path) -> None:
    (example,) = [text for text in blocks("python") if "run_app" in text]
    (shop / "test_shop.py").write_text(f"from shop import *\nfrom shop import app, orders\n\n{example}")
    command = "python_of_tests -m pytest -q -p no:cacheprovider -o asyncio_mode=auto test_shop.py"
    done = in_shell(command, _with_python(shop))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_benchmark_runs(shop: Path) -> None:
    (command,) = [text.strip() for text in blocks("console") if "-m benchmarks" in text]
    _with_python(shop)
    done = in_shell(command.replace("python", "python_of_tests", 1), shop)
    assert done.returncode == 0, done.stderr
    assert "streamlib" in done.stdout


def test_the_bench_runs_as_written(shop: Path) -> None:
    (command,) = [text.strip() for text in blocks("console") if "streamlib bench" in text]
    small = command.replace("redis://127.0.0.1:6379", "embedded://data") + " --events 2000 --rounds 1"
    done = in_shell(small, shop)
    assert done.returncode == 0, done.stderr
    assert "worker / raw_loop" in done.stdout


def test_ci_runs_the_test_command_of_the_readme() -> None:
    (command,) = [text.strip() for text in blocks("console") if "pytest" in text]
    assert command in (ROOT / ".ci" / "run").read_text()


def test_every_test_that_proves_a_promise_exists() -> None:
    promises = README.partition("## What it promises")[2].partition("\n## ")[0]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", promises)
    assert len(named) >= 9
    claimed = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(claimed) >= 12
    proving = re.findall(r"(tests/[\w/]+\.py)::(\w+)", (ROOT / "docs/guarantees.md").read_text())
    assert len(proving) >= len(named)
    for path, name in named + claimed + proving:
        functions = {
            node.name
            for node in ast.walk(ast.parse((ROOT / path).read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert name in functions, f"{path} has no {name}"


def test_every_relative_link_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def _with_python(folder: Path) -> Path:
    command = folder / "bin" / "python_of_tests"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    command.chmod(0o755)
    return folder
