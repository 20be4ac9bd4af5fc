"""NTK-Attention: a prefix of any length as a matrix and a vector per head (Liang et al. 2024, "Toward Infinite-Long Prefix in Transformer", S275).

out = (exp(s QK^T) V + phi(Q) Z) / (exp(s QK^T) 1 + phi(Q) |k|)    phi(x) = elu(sqrt(s) x) + 1, s: attention's scaling
Z: (heads, head_dim, head_dim)  k: (heads, head_dim), heads: those of keys and values    trained: heads * head_dim * (head_dim + 1) per site
Not an identity at step 0: k begins at `start.mass`; not a weight change: it cannot merge. Masks, padding and position biases
are of the content, as the base has them; the prefix is seen by all. Time and memory do not depend on `start.length`.

features=taylor: phi has one feature for each monomial up to `degree` and phi(q).phi(k) is the Taylor polynomial of
exp(q.k); Z and k then have comb(head_dim + degree, degree) rows, k enters as it is, and a negative phi(Q) k counts as 0.

Differs: k begins positive (at the public code's zero |k| has no gradient and stays there for ever), or, with
start.length, as a drawn prefix; `of_prefix` makes it from a trained one. With grouped key/value heads a group shares Z
and k, as it shares a prefix. The base's own attention stays as fused as it is; exp(s QK^T) 1 is computed beside it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import PositiveInt

from luthier.errors import OptionError
from luthier.host import Adaptation
from luthier.host.part import Start, method
from luthier.host.places import AttentionEdit
from luthier.methods.prefixes.p_tuning_v2 import PTuningV2
from luthier.sources import kernel
from luthier.sources.settle import settled
from luthier.starts.prefix_kernel import PrefixKernel


@method("ntk_attention", targets="attention", rate=3e-3)
class NTKAttention(AttentionEdit):
    features: Literal["elu", "taylor"] = "elu"  # the map phi
    degree: PositiveInt = 2  # of the Taylor polynomial
    start: Start = PrefixKernel()  # nothing, or a drawn prefix

    def number(self, dim: int) -> int:
        """How many features phi has."""
        return kernel.count(dim, self.degree if self.features == "taylor" else 0)

    def tensors(self, site, layout):
        number = self.number(site.head_dim)
        return {"Z": (site.heads, number, site.head_dim), "k": (site.heads, number)}

    def check(self, sites) -> None:
        most = max((self.number(s.head_dim) for s in sites), default=0)
        if most > kernel.LARGEST:
            raise OptionError(
                f"{self.name}: degree={self.degree} gives {most} features, more than {kernel.LARGEST}. Lower the degree, or choose features=elu."
            )

    def attend(self, seen, out, t, ctx):
        work = torch.promote_types(seen.q.dtype, torch.float32)
        z, k = t.Z.to(work), t.k.to(work)
        q = (
            seen.q.to(work).unflatten(1, (z.shape[-3], -1)) * seen.scaling**0.5
        )  # (rows, kv heads, group, tokens, dim)
        phi = kernel.features(q, k.shape[-1])
        mass = k.abs() if self.features == "elu" else k
        bottom = (phi @ mass[..., None, :, None])[..., 0].clamp(min=0)
        top = phi @ z[..., None, :, :]
        mixed = kernel.joined(
            out.to(work).transpose(1, 2), seen.log_mass(), top.flatten(1, 2), bottom.flatten(1, 2)
        )
        return mixed.transpose(1, 2).to(out.dtype)


@torch.no_grad()
def of_prefix(prefix: Adaptation, base: Any, **options: Any) -> Adaptation:
    """The NTK-Attention that a trained prefix is: Z = phi(K)^T V, k = sum phi(K). options: features, degree.

    The head and the task come along. Raises OptionError for what is no prefix of keys and values.
    """
    if not isinstance(prefix.method, PTuningV2):
        raise OptionError(f"{prefix.method.name} has no keys and values to sum up. Give a p_tuning_v2.")
    kind: Any = NTKAttention
    made = Adaptation.new(
        kind(targets=prefix.method.targets, **options), base, head=prefix.head, seed=prefix.seed
    )
    made.task, made.preprocess, made.about = prefix.task, prefix.preprocess, dict(prefix.about)
    old, new = settled(prefix, base).placed(), made.placed()
    for a, b in zip(old[0].ats(), new[0].ats(), strict=True):
        z, k = kernel.of_prefix(a.values["K"], a.values["V"], a.site.scaling, b.values["k"].shape[-1])
        b.values["Z"].copy_(z)
        b.values["k"].copy_(k)
    for p, q in zip(old[1:], new[1:], strict=True):  # the head
        for a, b in zip(p.ats(), q.ats(), strict=True):
            for name, value in b.values.items():
                value.copy_(a.values[name])
    return made
