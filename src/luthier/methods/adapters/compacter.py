"""Compacter: adapters whose projections are sums of Kronecker products (Karimi Mahabadi et al. 2021, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers").

h <- h + up(act(down(h)))    down = sum_i A_i kron (s_i t_i): (width, out)  up likewise: (out, width)  biases: (width,), (out,)
A_i: (pieces, pieces), shared by all projections of all layers; s_i t_i: of rank `source.rank`, of each projection (`luthier.sources.phm`)
After attention and after the feed-forward layer; Compacter++ is `targets="mlp.down"`.
Step 0 is the base (the s_i of up are zero). Not a weight change: it cannot merge. Any other adapter takes source=phm as well.

Differs: the paper draws both projections and trains layer norms too; here up is zero, down has the variance of an adapter's, and layer norms
stay as they are.
"""

from __future__ import annotations

from luthier.host.part import Source, method
from luthier.methods.adapters.bottleneck import Activation, Adapter
from luthier.sources.phm import PHM


@method("compacter", targets="*attention.output | mlp.down", rate=3e-3, identity_start=True)
class Compacter(Adapter):
    activation: Activation = "gelu"  # between down and up
    source: Source = PHM()  # the projections: pieces, and the rank of their own factors
