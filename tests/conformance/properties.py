"""What every method must keep to on every architecture: plain functions by name.

A property gets a cell and asserts. The parametrised suite calls them, and so do the meta-tests, which plant a fault in the host
and expect exactly one of them to fail.
"""

from tests.conformance import as_values, attached, effects, merging, training
from tests.conformance.registry import GREEDY, PROPERTIES, Property, written_from

__all__ = [
    "GREEDY", "PROPERTIES", "Property", "as_values", "attached", "effects", "merging", "training", "written_from",
]  # fmt: skip
