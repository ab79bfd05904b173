"""The version of the package, which pyproject.toml reads from here. Nothing else."""

__version__ = "0.2.0"
