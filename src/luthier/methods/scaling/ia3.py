"""(IA)3: learned vectors that rescale keys, values and the feed-forward layer (Liu et al. 2022, S294).

softmax(Q (l_k * K)^T) (l_v * V);  (l_ff * act(W1 x)) W2    l_k: (kv width,)  l_v: (kv width,)  l_ff: (inner,)
Trained: per block d_k + d_v + d_ff, and d_k + d_v more for a cross-attention. Step 0 is the base (all ones).
l_k and l_v scale the projections' outputs (before rotary), so that they fold into the weights; l_ff scales the input of
the closing projection and folds into its columns. T-Few's losses: `luthier.signals.t_few`.
"""

from __future__ import annotations

from luthier.host.functional import rowwise
from luthier.host.part import Method, Spec, method, ones
from luthier.host.places import WeightEdit


@method("scaled_outputs", targets="*attention.key | *attention.value", rate=2e-2, identity_start=True)
class ScaledOutputs(WeightEdit):
    """y <- l * y: the rows of the weight and the bias are scaled.

    trained: out per site
    """

    def tensors(self, site, layout):
        return {"l": Spec((site.out_features,), ones)}

    def delta(self, weight, t):
        return (t.l - 1)[:, None] * weight

    def delta_bias(self, weight, bias, t):
        return (t.l - 1) * bias if bias is not None else None

    def shortcut(self, x, y, t):
        return y * rowwise(t.l, y)


@method("scaled_inputs", targets="mlp.down", rate=2e-2, identity_start=True)
class ScaledInputs(WeightEdit):
    """x <- l * x: the columns of the weight are scaled.

    trained: in per site
    """

    def tensors(self, site, layout):
        return {"l": Spec((site.in_features,), ones)}

    def delta(self, weight, t):
        return weight * (t.l - 1)[None, :]

    def before(self, x, t):
        return x * rowwise(t.l, x)


@method("ia3", rate=2e-2, identity_start=True)
class IA3(Method):
    def parts(self):
        return (ScaledOutputs(), ScaledInputs())
