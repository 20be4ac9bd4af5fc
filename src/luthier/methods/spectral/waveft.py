"""WaveFT: sparse coefficients of a wavelet transform, at fixed random positions (Bilican et al. 2025, "Exploring Sparsity for Parameter Efficient Fine Tuning Using Wavelets", S321).

dW = alpha * inverse(C)    C: a map of the size of W, zero but for c at `count` positions of a seed    c: (count,)    trained: count per site
inverse: the inverse wavelet transform of one level (Haar's: each coefficient writes a 2 x 2 block of +-alpha/2), the inverse Fourier
transform, or nothing (`transform`: wavelet, fourier, identity). Identity is training at random entries, as SHiRA does.
Step 0 is the base (c = 0). Merging adds dW. A file holds the seed and c: positions are drawn again.
For odd sides, and for filters longer than Haar's, the map is larger than W and the transform is cut to it (`luthier.sources.transforms`).
"""

from __future__ import annotations

from pydantic import PositiveFloat

from luthier.host.part import method
from luthier.methods.spectral.coefficients import Coefficients
from luthier.sources.transforms import Transform, Wavelet


@method("waveft", targets="*attention.*", rate=1e-3, identity_start=True)
class WaveFT(Coefficients):
    alpha: PositiveFloat = 25.0  # the update is multiplied by it
    transform: Transform = "wavelet"  # what the coefficients are of
    wavelet: Wavelet = "db1"  # the filter of a wavelet transform; db1 is Haar's
