"""FourierFT: sparse coefficients of a Fourier transform (Gao et al. 2024, "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform").

dW = alpha * Re(ifft2(C))    C: a map of the size of W, zero but for c at `count` positions of a seed    c: (count,)
trained: count per site
Step 0 is the base (c = 0). Merging adds dW. `waveft` has the same transform as an option.

Differs: c starts at zero and not normally distributed (start=normal start.std=1.0 does that); each layer has positions of its own.
"""

from __future__ import annotations

from pydantic import PositiveFloat

from luthier.host.part import method
from luthier.methods.spectral.coefficients import Coefficients


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
