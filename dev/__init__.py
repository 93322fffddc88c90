"""Commands for those who work on Defuse; not part of the package."""
