"""How an adaptation lives in a model: choices, sites, places, contexts, attaching, merging, files."""

from luthier.host.adaptation import Adaptation
from luthier.host.adapted import Adapted
from luthier.host.combination import Combination, lerp, mean, stack
from luthier.host.context import Context
from luthier.host.part import Method, Part, Phase, Source, Spec, Start, T, method, normal, ones, zero, zeros

__all__ = [
    "Adaptation", "Adapted", "Combination", "Context", "Method", "Part", "Phase", "Source", "Spec", "Start", "T",
    "lerp", "mean", "method", "normal", "ones", "stack", "zero", "zeros",
]  # fmt: skip
