"""The public names of the package, and rules that all its files keep."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import defuse

SOURCES = Path(defuse.__file__).parent


def test_every_public_name_exists_and_none_is_missing() -> None:
    assert set(defuse.__all__) == set(defuse._HOME_OF)
    assert sorted(defuse.__all__) == sorted(set(defuse.__all__))
    for name in defuse.__all__:
        assert getattr(defuse, name) is getattr(import_module(defuse._HOME_OF[name]), name)


def test_every_module_imports() -> None:
    for path in SOURCES.rglob("*.py"):
        parts = path.relative_to(SOURCES.parent).with_suffix("").parts
        import_module(".".join(parts).removesuffix(".__init__"))


def test_importing_the_command_line_loads_no_heavy_library() -> None:
    code = "import sys, defuse.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # noqa: S603


def test_nobody_imports_the_command_line_and_files_stay_short() -> None:
    for path in SOURCES.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, path
        if path.parent.name != "cli" and path.name != "__main__.py":
            assert "defuse.cli" not in text, path
