"""The name of this project on the package index, where `defuse` is somebody else's package."""

DISTRIBUTION = "defuse-llm"


def install_hint(*extras: str) -> str:
    """The command that installs Defuse with some extras, as messages give it."""
    return f"pip install '{DISTRIBUTION}[{','.join(extras)}]'"
