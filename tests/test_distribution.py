"""What is handed out: its name on the package index, the files of a wheel, and its installation."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest

from defuse.utils.distribution import DISTRIBUTION, install_hint
from defuse.utils.provenance import versions

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = "|".join(PROJECT["optional-dependencies"])
# Names under which an installer or `importlib.metadata` would find somebody else's package.
FOREIGN = [
    rf"(?<![\w-])defuse ?\[ ?(?:{EXTRAS})\b",
    r"\b(?:pip3?|pipx|uv|conda|poetry) (?:pip )?(?:install|add|uninstall|show)(?: -\S+)* ?['\"]?"
    r"defuse(?![\w-])",
    r"\b(?:version|metadata|distribution|requires)\( ?['\"]defuse['\"] ?\)",
    r"pypi\.org/\w+/defuse(?![\w-])",
]


def foreign_names(text: str) -> list[str]:
    """Uses of the foreign name in `text`, whose lines, comments and strings may be broken."""
    text = re.sub(r"(['\"])\s*\n\s*[fr]?\1", "", text)  # strings that Python joins
    text = re.sub(r"\\?\n\s*(?:[#>*] )?", " ", text)
    text = re.sub(r"\s+", " ", text)
    return [found[0] for pattern in FOREIGN for found in re.finditer(pattern, text)]


@pytest.mark.parametrize(
    "text",
    [
        "`pip install 'defuse[peft]'`",
        "(`pip\ninstall 'defuse\n[gguf]'`)",
        '"needs peft; pip "\n        "install defuse"',
        "pip install --upgrade \\\n    defuse",
        'f"pip install \'def"\n   f"use[ray]\'"',
        'version("defuse")',
        "real = ['defuse[gguf]']",
    ],
)
def test_a_foreign_name_is_found(text: str) -> None:
    assert foreign_names(text)


@pytest.mark.parametrize(
    "text",
    ["pip install 'defuse-llm[peft]'", "defuse tofu smollm2 [field=value …]", "defuse[0]"],
)
def test_our_own_names_are_not(text: str) -> None:
    assert not foreign_names(text)


def test_the_project_has_one_name() -> None:
    paths = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile")]
    paths += [ROOT / "pyproject.toml", *(ROOT / ".ci").glob("*")]
    for folder, suffixes in (("src", ("py", "yaml", "jinja")), ("docs", ("md", "json", "ipynb"))):
        paths += [path for each in suffixes for path in (ROOT / folder).rglob(f"*.{each}")]
    paths += [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "dev").glob("*")]
    for path in paths:
        assert not path.is_file() or not foreign_names(path.read_text("utf-8")), path
    assert PROJECT["name"] == DISTRIBUTION
    assert install_hint("peft", "gguf") == f"pip install '{DISTRIBUTION}[peft,gguf]'"


def test_a_record_names_the_version_that_is_installed() -> None:
    assert versions()["defuse"] == version(DISTRIBUTION) == PROJECT["version"]


def run(*command: object, folder: Path) -> str:
    """What a command prints, run with nothing of this checkout on Python's path."""
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(  # noqa: S603
        [str(part) for part in command],
        cwd=folder,
        env=outside,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shipped(folder: Path) -> set[str]:
    """The files that a user needs of the package in `folder`."""
    return {
        path.relative_to(folder.parent).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.slow(reason="builds and installs the package in fresh environments")
def test_wheel_and_source_distribution_install_in_a_fresh_environment(tmp_path: Path) -> None:
    """Both are complete, install with and without extras, and run.

    The fresh environments see this one's packages through a .pth file, after their own: that stands
    for the dependencies (PyTorch among them), which are not fetched again. Each distribution itself
    is installed by pip, which resolves the requirements of its extras against these packages.
    """
    built = tmp_path / "dist"
    run(sys.executable, "-m", "build", "--outdir", built, ROOT, folder=tmp_path)
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    expected = shipped(ROOT / "src" / "defuse")
    with ZipFile(wheel) as opened:
        assert {name for name in opened.namelist() if ".dist-info/" not in name} == expected
    with tarfile.open(source) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
        assert {f"src/{name}" for name in expected} <= names
        assert {"LICENSE", "README.md", "pyproject.toml"} <= names
    for number, wanted in enumerate((wheel, f"{wheel}[gguf,peft,real,tofu,attacks]", source)):
        home = tmp_path / f"environment-{number}"
        run(sys.executable, "-m", "venv", home, folder=tmp_path)
        (packages,) = home.glob("lib/python*/site-packages")
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
        python = home / "bin" / "python"
        run(python, "-m", "pip", "install", "--quiet", wanted, folder=tmp_path)
        where = run(python, "-c", "import defuse; print(defuse.__file__)", folder=tmp_path)
        assert Path(where.strip()).is_relative_to(packages)
        assert "runs" in run(home / "bin" / "defuse", "lab", "--plan", folder=tmp_path)
