"""Who may import whom, read from sys.modules of fresh interpreters."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SECURITY_LIBRARIES = ("sqlalchemy", "alembic", "argon2", "jwt")


def loaded_by(code: str) -> set[str]:
    """Return the modules that a fresh interpreter holds after `code`."""
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def of(modules: set[str], *packages: str) -> set[str]:
    return {
        name
        for name in modules
        if any(name == package or name.startswith(package + ".") for package in packages)
    }


def test_the_front_never_loads_llama_cpp_or_the_engine() -> None:
    modules = loaded_by("import inferno.server.worker")
    assert of(modules, "inferno.server")
    assert not of(
        modules, "llama_cpp", "inferno.engine", "inferno_native.llama", "inferno_native.gguf", "inferno.cli"
    )


def test_the_front_loads_no_tracing_library_before_it_is_configured() -> None:
    modules = loaded_by("import inferno.server.worker, inferno.server.assembly")
    assert not of(modules, "opentelemetry", "google.protobuf", "requests", "inferno.server.tracing")


@pytest.mark.parametrize("module", ["main", "template_child", "prompts", "verification"])
def test_the_engine_loads_no_server_storage_security_or_pool(module: str) -> None:
    modules = loaded_by(f"import inferno.engine.{module}")
    assert of(modules, f"inferno.engine.{module}")
    foreign = (
        "starlette",
        "uvicorn",
        "inferno.server",
        "inferno.security",
        "inferno.storage",
        "inferno.pool",
        "inferno.cli",
    )
    assert not of(modules, *foreign, *SECURITY_LIBRARIES)


def test_the_template_child_never_loads_libllama() -> None:
    modules = loaded_by("import inferno.engine.template_child")
    assert not of(modules, "llama_cpp", "inferno_native.llama", "inferno_native.batching")


def test_the_supervisors_parts_load_no_server_security_or_engine() -> None:
    modules = loaded_by("import inferno.pool.supervisor, inferno.pool.control")
    foreign = (
        "llama_cpp",
        "starlette",
        "inferno.server",
        "inferno.engine",
        "inferno.security",
        "inferno.storage",
    )
    assert not of(modules, *foreign, *SECURITY_LIBRARIES)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []])
def test_inferno_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import contextlib, io
from inferno.cli import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    main({arguments!r})
"""
    modules = loaded_by(code)
    assert "inferno.cli" in modules
    heavy = (
        "llama_cpp", "starlette", "uvicorn", "numpy", "msgspec", "asyncio", "prometheus_client", "jinja2", "rich",
        "inferno.server", "inferno.engine", "inferno.security", "inferno.storage", "inferno.pool", "inferno.config",
        "inferno_native",
    )  # fmt: skip
    assert not of(modules, *heavy, *SECURITY_LIBRARIES)


def test_importing_the_package_is_cheap() -> None:
    modules = loaded_by("import inferno")
    assert {name for name in of(modules, "inferno")} == {"inferno"}


def _imports(path: Path) -> set[str]:
    """Return the inferno packages that a file imports, wherever in it."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = (*base, *(node.module or "").split("."))
            names = [target] if node.module else [(*base, alias.name) for alias in node.names]
            found |= {parts[1] for parts in names if len(parts) > 1 and parts[0] == "inferno"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("inferno."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("inferno.")}
    return found


FORBIDDEN = {
    "engine": {"server", "security", "storage", "pool", "cli"},
    "server": {"engine", "cli"},
    "pool": {"engine", "server", "security", "storage", "cli"},
    "security": {"engine", "server", "pool", "cli"},
    "storage": {"engine", "server", "pool", "cli", "security"},
    "config": {"engine", "server", "pool", "cli", "security", "storage"},
}


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_no_file_imports_what_its_package_may_not(package: str) -> None:
    files = sorted((ROOT / "inferno" / package).rglob("*.py"))
    assert files
    wrong = {str(path.relative_to(ROOT)): _imports(path) & FORBIDDEN[package] for path in files}
    assert {name: names for name, names in wrong.items() if names} == {}


def test_nothing_imports_the_commands() -> None:
    for path in (ROOT / "inferno").rglob("*.py"):
        if "cli" not in path.relative_to(ROOT).parts:
            assert "cli" not in _imports(path), path


def test_no_pickle_anywhere() -> None:
    for path in (ROOT / "inferno").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"pickle", "marshal", "shelve", "dill"}, path
