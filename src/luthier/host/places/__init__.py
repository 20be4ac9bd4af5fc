"""The places: where a part enters the model. Each says what a method writes there and hooks it into the model."""

from luthier.host.places.activation import ActivationEdit
from luthier.host.places.attention import AttentionEdit
from luthier.host.places.block import BlockTokens
from luthier.host.places.convolution import ConvolutionEdit
from luthier.host.places.factored import Factors
from luthier.host.places.output import OutputHead
from luthier.host.places.stack import Stack
from luthier.host.places.state import StateEdit
from luthier.host.places.tokens import TokenPrompt
from luthier.host.places.units import UnitCut
from luthier.host.places.weight import Subset, WeightEdit

__all__ = [
    "ActivationEdit", "AttentionEdit", "BlockTokens", "ConvolutionEdit", "Factors", "OutputHead", "Stack", "StateEdit", "Subset",
    "TokenPrompt", "UnitCut", "WeightEdit",
]  # fmt: skip
