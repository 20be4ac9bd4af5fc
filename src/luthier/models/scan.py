"""Our own selective scan: Mamba's mixer as one pass over chunks of time, exact to Transformers' slow path and fast without kernels.

Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces (2023):

    h_t = exp(dt_t A) h_(t-1) + dt_t B_t u_t        y_t = C_t h_t + D u_t

Transformers keeps every h_t and reads each step by an index, so that the backward pass writes a whole sequence of zeros
for each step. Here a chunk of steps is scanned in place; only the state between two chunks is kept, and the backward
pass scans the chunk again, as the paper's kernel does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from transformers.models.mamba.modeling_mamba import MambaMixer

CHUNK = 1 << 19
"""Numbers of all states of a chunk of steps, about: they are to stay in the processor's cache."""
SHORTEST = 4
"""Steps of a chunk at least: of so many states one is kept."""


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(y, last state) of the recurrence without its skip connection D.

    u, dt (rows, tokens, inner width): what is read, and the steps' sizes, after softplus. A (inner width, states), below 0.
    B, C (rows, tokens, states): how the state is written and read. initial (rows, inner width, states): the state
    before the first token, zero if not given. y is like u, the last state like `initial`. Computed in float32, or in
    float64 where u is. Gradients reach every argument, any number of times and under torch.func's transforms.
    """
    dtype = torch.float64 if u.dtype is torch.float64 else torch.float32
    with torch.autocast(u.device.type, enabled=False):
        u, dt, A, B, C = (t.to(dtype) for t in (u, dt, A, B, C))
        if initial is None:
            initial = u.new_zeros(u.shape[0], *A.shape)
        given = (u, dt, A, B, C, initial.to(dtype))
        if torch._C._are_functorch_transforms_active():
            return plain_scan(*given)
        return _Scan.apply(*given)


def plain_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor
) -> tuple[Tensor, Tensor]:
    """The same step by step, in operations that torch differentiates: what `selective_scan` is compared with, and what
    it is under torch.func and for gradients of gradients."""
    h, out = initial, []
    for x, step, b, c in zip(u.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        h = torch.exp(step[..., None] * A) * h + (step * x)[..., None] * b[:, None]
        out.append((h * c[:, None]).sum(-1))
    return torch.stack(out, 1), h


def _states(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """(decays, states) of one chunk: both (steps, rows, states, inner width), the inner width last so that it is
    what vector instructions run over. u, dt (steps, rows, inner width), A (states, inner width), B (steps, rows, states)."""
    decay = (dt[:, :, None] * A).exp_()
    states = (dt * u)[:, :, None] * B[..., None]
    for a, h in zip(decay.unbind(0), states.unbind(0), strict=True):
        before = h.addcmul_(a, before)
    return decay, states


class _Scan(torch.autograd.Function):
    """`selective_scan` of arguments of one kind of number."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor]:
        u, dt, A, B, C, initial = given
        u, dt, B, C = (t.transpose(0, 1).contiguous() for t in (u, dt, B, C))  # time first
        At, h = A.t().contiguous(), initial.transpose(1, 2).contiguous()
        steps = max(SHORTEST, CHUNK // max(1, h.numel()))
        y, kept = torch.empty_like(u), []
        for i in range(0, len(u), steps):
            at = slice(i, i + steps)
            kept.append(h)
            _, states = _states(u[at], dt[at], At, B[at], h)
            y[at] = (C[at][:, :, None] @ states)[:, :, 0]
            h = states[-1].clone()
        ctx.save_for_backward(*given, *kept)
        ctx.steps = steps
        return y.transpose(0, 1), h.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        saved = ctx.saved_tensors  # read once: whatever recomputes gives each tensor out once
        given, kept = saved[:6], saved[6:]
        if torch.is_grad_enabled():  # gradients of these gradients are wanted
            wanted = [t for t, need in zip(given, ctx.needs_input_grad, strict=True) if need]
            found = iter(
                torch.autograd.grad(plain_scan(*given), wanted, grads, create_graph=True, allow_unused=True)
            )
            return tuple(next(found) if need else None for need in ctx.needs_input_grad)
        u, dt, A, B, C, _ = given
        carry = grads[1].transpose(1, 2).contiguous()
        u, dt, B, C, gy = (t.transpose(0, 1).contiguous() for t in (u, dt, B, C, grads[0]))
        At = A.t().contiguous()
        gu, gdt, gA, gB, gC = (torch.empty_like(t) for t in (u, dt, At, B, C))
        gA.zero_()
        for n in reversed(range(len(kept))):
            at = slice(n * ctx.steps, (n + 1) * ctx.steps)
            x, step, b, c, g = u[at], dt[at], B[at], C[at], gy[at]
            decay, states = _states(x, step, At, b, kept[n])
            gC[at] = (states @ g[..., None])[..., 0]
            gh = c[..., None] * g[:, :, None]
            for a, here in zip(reversed(decay.unbind(0)), reversed(gh.unbind(0)), strict=True):
                here.add_(carry)
                carry = a * here
            written = (b[:, :, None] @ gh)[:, :, 0]
            gu[at] = written * step
            gB[at] = (gh @ (step * x)[..., None])[..., 0]
            # gradients of the exponents dt A; the state before a step is the one after the step before
            decay.mul_(gh)
            decay[0].mul_(kept[n])
            decay[1:].mul_(states[:-1])
            gdt[at] = (decay * At).sum(2) + written * x
            gA += torch.einsum("tbnd,tbd->nd", decay, step)
        return (
            *(g.transpose(0, 1) for g in (gu, gdt)),
            gA.t(),
            *(g.transpose(0, 1) for g in (gB, gC)),
            carry.transpose(1, 2),
        )


class ScanMixer(MambaMixer):
    """Transformers' MambaMixer with `selective_scan`; parameters, names and outputs are those of the original.

    It calls `conv1d` and `dt_proj` as modules, where the original reads their weights: what is attached to them acts.
    Kernels for a GPU are used where they are installed, unless something is attached to one of the two modules. As
    in the original, several tokens that follow a cache begin from the state zero, one token goes on from the cache's.
    """

    def forward(
        self,
        hidden_states: Tensor,
        cache_params: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(rows, tokens, width) to the same; attention_mask (rows, tokens), 0 for padding."""
        if hidden_states.is_cuda and _has_kernels() and not any(map(_edited, (self.conv1d, self.dt_proj))):
            return super().forward(hidden_states, cache_params, attention_mask, **kwargs)
        tokens, dtype = hidden_states.shape[1], hidden_states.dtype
        state = cache_params.get_recurrent_state(self.layer_idx, state_idx=0) if cache_params else None
        u, gate = self.in_proj(_masked(hidden_states, attention_mask)).chunk(2, dim=-1)
        u = u.transpose(1, 2)
        if cache_params is not None:
            u = cache_params.update_conv_state(u, self.layer_idx, conv_kernel_size=self.conv_kernel_size)
        length = u.shape[-1]  # the convolution pads both sides: what follows the last token is cut
        u = self.act(self.conv1d(u)[..., length - tokens : length].transpose(1, 2)).to(dtype)
        u = _masked(u, attention_mask)
        step, B, C = self.x_proj(u).split([self.time_step_rank, self.ssm_state_size, self.ssm_state_size], -1)
        y, last = selective_scan(
            u,
            softplus(self.dt_proj(step)),
            -torch.exp(self.A_log.float()),
            B,
            C,
            state if tokens == 1 else None,
        )
        if cache_params is not None:
            cache_params.update_recurrent_state(last, self.layer_idx)
        y = (y + u * self.D.float()) * self.act(gate)
        return self.out_proj(y.to(dtype))


def _masked(states: Tensor, mask: Tensor | None) -> Tensor:
    return states if mask is None else (states * mask[:, :, None]).to(states.dtype)


def _edited(module: nn.Module) -> bool:
    """Whether a call of the module would do something other than its own forward."""
    return "forward" in module.__dict__ or bool(module._forward_hooks or module._forward_pre_hooks)


def _has_kernels() -> bool:
    from transformers.utils import import_utils

    return bool(import_utils.is_mamba_ssm_available())


def scanned(model: Any) -> int:
    """Let every mixer of a Mamba compute by our scan, in place; returns how many there are.

    Only the mixers' class changes: the modules, their names and tensors stay, and so does what a saved model holds.
    """
    found = [m for m in model.modules() if type(m) is MambaMixer]
    for mixer in found:
        mixer.__class__ = ScanMixer
    return len(found)
