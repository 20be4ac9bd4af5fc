"""FourierFT: sparse coefficients of a Fourier transform (Gao et al. 2024, "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform").

dW = alpha * Re(ifft2(C))    C: a map of the size of W, zero but for c at `count` positions of a seed    c: (count,)
trained: count per site
Step 0 is the base (c = 0). Merging adds dW. `waveft` has the same transform as an option.

Differs: c starts at zero and not normally distributed (start=normal start.std=1.0 does that); each layer has positions of its own, where public code
has the same in all layers of one size (positions=peft: exactly peft's of the seed).
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat

from luthier.host.part import method
from luthier.methods.spectral.coefficients import Coefficients
from luthier.sources.peft_draws import fourier_positions


@method(
    "fourierft",
    targets="*attention.query | *attention.value",
    rate=3e-2,
    identity_start=True,
    transform="fourier",
    wavelet="",
)
class FourierFT(Coefficients):
    alpha: PositiveFloat = 300.0  # the update is multiplied by it
    positions: Literal["own", "peft"] = (
        "own"  # own: each layer's; peft: what peft makes of the seed, the same in layers of one size
    )

    def tensors(self, site, layout):
        made = super().tensors(site, layout)
        if self.positions == "peft":
            size = site.out_features * site.in_features
            return {**made, "positions": fourier_positions(self.count, size, self.seed)}
        return made
