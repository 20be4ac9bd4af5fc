"""Subsets of a model's own parameters, trained as values beside them: full tuning, BitFit, norms, the last blocks.

full        every parameter (embeddings included)                                       trained: all
bitfit      every bias (Ben Zaken et al. 2022, "BitFit")                                trained: biases
layer_norm  weights and biases of every norm (Qi et al. 2022; Zhao et al. 2024)         trained: norms (width each, 2 * width with a bias)
last_layers every parameter of the last k blocks                                        trained: top(layers)
Values train beside the base's own and start as copies of them; decay touches nothing else. A file holds only what trains.
Step 0 is the base; merging writes the values. "Every" means every one that the task's loss reaches.
"""

from __future__ import annotations

from pydantic import PositiveInt

from luthier.errors import SiteError
from luthier.host.applicable import Reason, because
from luthier.host.part import Spec, Start, method, register
from luthier.host.places import Subset


@register("pretrained")
class Pretrained(Start):
    """Copies of the base's own values."""

    def fill(self, site, specs, weight, statistics, rng):
        return {k: statistics["parameters"][k].float() for k in specs}


@method("full", targets="*", rate=5e-5, decay=0.01, identity_start=True)
class Full(Subset):
    wherever = True
    start: Start = Pretrained()

    def trains(self, name: str) -> bool:
        return True

    def sites(self, structure, name=None):
        chosen = [
            s
            for s in super().sites(structure, name)
            if s.rows is None and any(self.trains(n) for n, _ in s.parameters)
        ]
        if not chosen:
            raise because(
                SiteError(
                    f"{self.name}: no module among {self.targets!r} of {structure.model} has such parameters. Choose another method."
                ),
                Reason.NO_PARAMETER,
            )
        return chosen

    def tensors(self, site, layout):
        return {n: Spec(shape) for n, shape in site.parameters if self.trains(n)}

    def values(self, parameters, t):
        return t


@method("bitfit", targets="*", rate=2e-3, decay=0.0, identity_start=True)
class BitFit(Full):
    def trains(self, name):
        return name == "bias" or name.endswith("_bias")


@method("layer_norm", targets="norm*", rate=2e-3, decay=0.0, identity_start=True)
class LayerNormTuning(Full):
    pass


@method("last_layers", targets="*", rate=2e-4, decay=0.01, identity_start=True)
class LastLayers(Full):
    layers: PositiveInt = 2  # how many blocks from the top

    def sites(self, structure, name=None):
        chosen = super().sites(structure, name)
        if name is not None:
            return chosen
        last = {t.name: len(t.blocks) - self.layers for t in structure.towers}
        if any(n < 0 for n in last.values()) or not last:
            raise SiteError(f"last_layers: layers={self.layers} is more than the model has.")
        return [s for s in chosen if s.layer is not None and s.layer >= last[s.tower]]
