"""The version, apart, so that any module may name it."""

__version__ = "0.1.0"
