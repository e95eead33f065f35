"""GPU kernels, in triton, for what lies between the matrix products of the networks: norms, gates and sums.

A training step of MVDream spends a third of its time on work that only moves numbers: PyTorch's group norm turns
channels-last pictures over and back, and activation, bias and sum are a pass over memory each. Each of these kernels
makes one pass of several. They compute in float32, whatever the dtype, and have gradients in the activations alone:
the weights are frozen. Importing this module raises ImportError where there is no triton; `fused` asks before.
"""
# triton declares what is known when a kernel is compiled as constexpr, and is given plain numbers; its functions raise
# an error when they are called from Python.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

# Not to be compiled anew for each of their values.
_ONCE = ["pixels", "channels", "size", "epsilon", "apart", "added", "also"]
_TILE = 8192  # numbers of a picture taken at once: of those tried on an H100, with 16 warps, the fastest


@triton.jit
def _tile(x, first, pixels, channels, inside, column, height: tl.constexpr):
    """Where the next pixels of a group lie, which of them there are, and what they hold."""
    row = first + tl.arange(0, height)
    mask = (row < pixels)[:, None] & inside[None]
    where = row[:, None] * channels + column[None]
    return where, mask, tl.load(x + where, mask, 0.0).to(tl.float32)


@triton.jit
def _slope(gradient, where, mask, normal, gain, offset, silu: tl.constexpr):
    """The gradient in what has mean 0 and deviation 1."""
    slope = tl.load(gradient + where, mask, 0.0).to(tl.float32)
    if silu:
        value = normal * gain[None] + offset[None]
        share = tl.sigmoid(value)
        slope *= share * (1 + value * (1 - share))
    return slope * gain[None]


@triton.jit(do_not_specialize=_ONCE)
def _group_norm(
    x, rows, bias, weight, shift, out, moments, pixels, channels, size, epsilon,
    apart, added, silu: tl.constexpr, width: tl.constexpr, height: tl.constexpr,
):  # fmt: skip
    group, picture = tl.program_id(0), tl.program_id(1)
    start = picture.to(tl.int64) * pixels * channels + group * size
    x += start
    out += start
    column = tl.arange(0, width)
    inside = column < size
    more = tl.zeros([width], tl.float32)
    if added != 0:
        more += tl.load(rows + picture * apart + group * size + column, inside, 0.0).to(tl.float32)
        more += tl.load(bias + group * size + column, inside, 0.0).to(tl.float32)
    origin = tl.load(x).to(tl.float32)  # sums of what is far from zero would lose digits
    total = tl.zeros([height, width], tl.float32)
    squares = tl.zeros([height, width], tl.float32)
    first = 0
    while first < pixels:
        where, mask, value = _tile(x, first, pixels, channels, inside, column, height)
        value = tl.where(mask, value + (more - origin)[None], 0.0)
        total += value
        squares += value * value
        first += height
    count = pixels * size
    mean = tl.sum(total) / count
    scale = 1 / tl.sqrt(tl.maximum(tl.sum(squares) / count - mean * mean, 0.0) + epsilon)
    mean += origin
    place = moments + (picture * tl.num_programs(0) + group) * 2
    tl.store(place, mean)
    tl.store(place + 1, scale)
    gain = tl.load(weight + group * size + column, inside, 0.0).to(tl.float32) * scale
    offset = tl.load(shift + group * size + column, inside, 0.0).to(tl.float32) + (more - mean) * gain
    first = 0
    while first < pixels:
        where, mask, value = _tile(x, first, pixels, channels, inside, column, height)
        value = value * gain[None] + offset[None]
        if silu:
            value = value * tl.sigmoid(value)
        tl.store(out + where, value.to(out.dtype.element_ty), mask)
        first += height


@triton.jit(do_not_specialize=_ONCE)
def _group_norm_backward(
    x, rows, bias, weight, shift, gradient, more, moments, out, pixels, channels, size,
    apart, added, also, silu: tl.constexpr, width: tl.constexpr, height: tl.constexpr,
):  # fmt: skip
    group, picture = tl.program_id(0), tl.program_id(1)
    start = picture.to(tl.int64) * pixels * channels + group * size
    x += start
    gradient += start
    more += start
    out += start
    column = tl.arange(0, width)
    inside = column < size
    place = moments + (picture * tl.num_programs(0) + group) * 2
    mean, scale = tl.load(place), tl.load(place + 1)
    before = tl.zeros([width], tl.float32) - mean
    if added != 0:
        before += tl.load(rows + picture * apart + group * size + column, inside, 0.0).to(tl.float32)
        before += tl.load(bias + group * size + column, inside, 0.0).to(tl.float32)
    gain = tl.load(weight + group * size + column, inside, 0.0).to(tl.float32)
    offset = tl.load(shift + group * size + column, inside, 0.0).to(tl.float32)
    total = tl.zeros([height, width], tl.float32)
    along = tl.zeros([height, width], tl.float32)
    first = 0
    while first < pixels:
        where, mask, value = _tile(x, first, pixels, channels, inside, column, height)
        normal = (value + before[None]) * scale
        slope = _slope(gradient, where, mask, normal, gain, offset, silu)  # 0 outside
        total += slope
        along += slope * normal
        first += height
    count = pixels * size
    even, tilt = tl.sum(total) / count, tl.sum(along) / count
    first = 0
    while first < pixels:
        where, mask, value = _tile(x, first, pixels, channels, inside, column, height)
        normal = (value + before[None]) * scale
        slope = _slope(gradient, where, mask, normal, gain, offset, silu)
        further = tl.load(more + where, mask & (also != 0), 0.0).to(tl.float32)
        tl.store(out + where, ((slope - even - normal * tilt) * scale + further).to(out.dtype.element_ty), mask)
        first += height


def _grid(x: Tensor, groups: int) -> tuple[tuple[int, int], dict[str, int]]:
    pictures, channels, height, width = x.shape
    size, pixels = channels // groups, height * width
    wide = triton.next_power_of_2(size)
    high = min(triton.next_power_of_2(pixels), _TILE // wide)
    shape = {"pixels": pixels, "channels": channels, "size": size, "width": wide, "height": high}
    return (groups, pictures), {**shape, "num_warps": 16 if 2 * wide * high >= _TILE else 4}


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rows: Tensor | None, bias: Tensor | None,
        groups: int, weight: Tensor, shift: Tensor, epsilon: float, silu: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        grid, shape = _grid(x, groups)
        ctx.added, ctx.silu = 1, silu
        if rows is None or bias is None:
            ctx.added, rows, bias = 0, weight, weight
        ctx.set_materialize_grads(False)
        out = torch.empty_like(x)
        moments = torch.empty(x.shape[0], groups, 2, dtype=torch.float32, device=x.device)
        _group_norm[grid](
            x, rows, bias, weight, shift, out, moments,
            epsilon=epsilon, apart=rows.stride(0), added=ctx.added, silu=ctx.silu, **shape,
        )  # fmt: skip
        ctx.save_for_backward(x, rows, bias, weight, shift, moments)
        return x, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, rows, bias, weight, shift, moments = ctx.saved_tensors
        of_x, gradient = (None if g is None else g.contiguous(memory_format=torch.channels_last) for g in gradients)
        if gradient is None:
            return of_x, *(None,) * 7
        grid, shape = _grid(x, moments.shape[1])
        out = torch.empty_like(x)
        more, also = (gradient, 0) if of_x is None else (of_x, 1)
        _group_norm_backward[grid](
            x, rows, bias, weight, shift, gradient, more, moments, out,
            apart=rows.stride(0), added=ctx.added, also=also, silu=ctx.silu, **shape,
        )  # fmt: skip
        return out, *(None,) * 7


def group_norm(
    x: Tensor,  # (B,C,h,w), channels-last
    groups: int,
    weight: Tensor,  # (C,)
    shift: Tensor,  # (C,)
    epsilon: float,
    *,
    silu: bool = False,
    rows: Tensor | None = None,  # (B,C), numbers of a row side by side
    bias: Tensor | None = None,  # (C,)
) -> Tensor:  # (B,C,h,w), channels-last, in the dtype of x
    """Group norm of x + rows + bias, and SiLU of that; rows and bias are given together or not at all."""
    return _GroupNorm.apply(x, rows, bias, groups, weight, shift, epsilon, silu)[1]


def carried_group_norm(
    x: Tensor, groups: int, weight: Tensor, shift: Tensor, epsilon: float, *, silu: bool = False
) -> tuple[Tensor, Tensor]:  # two (B,C,h,w), channels-last
    """x itself and its `group_norm`. Who goes on with this x gets the gradients of both uses added up in one pass."""
    return _GroupNorm.apply(x, None, None, groups, weight, shift, epsilon, silu)


@triton.jit
def _gelu_gate(x, out, width, tile: tl.constexpr):
    column = tl.program_id(1) * tile + tl.arange(0, tile)
    inside = column < width
    x += tl.program_id(0).to(tl.int64) * 2 * width
    value = tl.load(x + column, inside).to(tl.float32)
    gate = tl.load(x + width + column, inside).to(tl.float32)
    result = value * gate * 0.5 * (1 + tl.erf(gate * 0.7071067811865476))
    tl.store(out + tl.program_id(0).to(tl.int64) * width + column, result.to(out.dtype.element_ty), inside)


@triton.jit
def _gelu_gate_backward(x, gradient, out, width, tile: tl.constexpr):
    column = tl.program_id(1) * tile + tl.arange(0, tile)
    inside = column < width
    start = tl.program_id(0).to(tl.int64) * width
    value = tl.load(x + 2 * start + column, inside).to(tl.float32)
    gate = tl.load(x + 2 * start + width + column, inside).to(tl.float32)
    slope = tl.load(gradient + start + column, inside).to(tl.float32)
    share = 0.5 * (1 + tl.erf(gate * 0.7071067811865476))
    density = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    out += 2 * start + column
    tl.store(out, (slope * gate * share).to(out.dtype.element_ty), inside)
    tl.store(out + width, (slope * value * (share + gate * density)).to(out.dtype.element_ty), inside)


class _GeluGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        width = x.shape[-1] // 2
        out = x.new_empty(*x.shape[:-1], width)
        ctx.save_for_backward(x)
        _gelu_gate[(out.numel() // width, triton.cdiv(width, 1024))](x, out, width, tile=1024)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        width = x.shape[-1] // 2
        out = torch.empty_like(x)
        grid = x.numel() // (2 * width), triton.cdiv(width, 1024)
        _gelu_gate_backward[grid](x, gradients[0].contiguous(), out, width, tile=1024)
        return out


def gelu_gate(x: Tensor) -> Tensor:  # (...,2n) -> (...,n)
    """The first half times the (exact) GELU of the second; x is contiguous."""
    return _GeluGate.apply(x)


@triton.jit
def _quick_gelu(x, out, count, tile: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    value = tl.load(x + i, i < count).to(tl.float32)
    tl.store(out + i, (value * tl.sigmoid(1.702 * value)).to(out.dtype.element_ty), i < count)


@triton.jit
def _quick_gelu_backward(x, gradient, out, count, tile: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    value = tl.load(x + i, i < count).to(tl.float32)
    slope = tl.load(gradient + i, i < count).to(tl.float32)
    share = tl.sigmoid(1.702 * value)
    slope *= share * (1 + 1.702 * value * (1 - share))
    tl.store(out + i, slope.to(out.dtype.element_ty), i < count)


class _QuickGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        out = torch.empty_like(x)
        _quick_gelu[(triton.cdiv(x.numel(), 1024),)](x, out, x.numel(), tile=1024)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        out = torch.empty_like(x)
        _quick_gelu_backward[(triton.cdiv(x.numel(), 1024),)](x, gradients[0].contiguous(), out, x.numel(), tile=1024)
        return out


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), as CLIP has it; x is contiguous."""
    return _QuickGelu.apply(x)


@triton.jit
def _add(x, y, bias, out, count, channels, tile: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    inside = i < count
    total = tl.load(x + i, inside).to(tl.float32) + tl.load(y + i, inside).to(tl.float32)
    total += tl.load(bias + i % channels, inside).to(tl.float32)
    tl.store(out + i, total.to(out.dtype.element_ty), inside)


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
        ctx.dtypes = x.dtype, y.dtype
        out = torch.empty_like(x, dtype=torch.promote_types(x.dtype, y.dtype))
        _add[(triton.cdiv(x.numel(), 1024),)](x, y, bias, out, x.numel(), x.shape[1], tile=1024)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0].to(ctx.dtypes[0]), gradients[0].to(ctx.dtypes[1]), None


def add(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:  # (B,C,h,w), (B,C,h,w), (C,) -> (B,C,h,w), all channels-last
    """x + y + bias."""
    return _Add.apply(x, y, bias)


@triton.jit
def _add_norm(x, y, weight, shift, total, out, size, epsilon, two: tl.constexpr, width: tl.constexpr):
    column = tl.arange(0, width)
    inside = column < size
    place = tl.program_id(0).to(tl.int64) * size + column
    value = tl.load(x + place, inside, 0.0).to(tl.float32)
    if two:
        value += tl.load(y + place, inside, 0.0).to(tl.float32)
        tl.store(total + place, value.to(total.dtype.element_ty), inside)
    mean = tl.sum(value) / size
    value = tl.where(inside, value - mean, 0.0)
    scale = 1 / tl.sqrt(tl.sum(value * value) / size + epsilon)
    gain = tl.load(weight + column, inside, 0.0).to(tl.float32) * scale
    normal = value * gain + tl.load(shift + column, inside, 0.0).to(tl.float32)
    tl.store(out + place, normal.to(out.dtype.element_ty), inside)


@triton.jit
def _add_norm_backward(total, weight, gradient, gradient_of_total, out, size, epsilon, width: tl.constexpr):
    column = tl.arange(0, width)
    inside = column < size
    place = tl.program_id(0).to(tl.int64) * size + column
    value = tl.load(total + place, inside, 0.0).to(tl.float32)
    mean = tl.sum(value) / size
    value = tl.where(inside, value - mean, 0.0)
    scale = 1 / tl.sqrt(tl.sum(value * value) / size + epsilon)
    normal = value * scale
    slope = tl.load(gradient + place, inside, 0.0).to(tl.float32)
    slope *= tl.load(weight + column, inside, 0.0).to(tl.float32)
    slope = (slope - tl.sum(slope) / size - normal * (tl.sum(slope * normal) / size)) * scale
    slope += tl.load(gradient_of_total + place, inside, 0.0).to(tl.float32)
    tl.store(out + place, slope.to(out.dtype.element_ty), inside)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor | None, weight: Tensor, shift: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        size = x.shape[-1]
        total = x if y is None else torch.empty_like(x, dtype=torch.promote_types(x.dtype, y.dtype))
        out = torch.empty_like(total)
        width = triton.next_power_of_2(size)
        _add_norm[(x.numel() // size,)](
            x, x if y is None else y, weight, shift, total, out, size, epsilon, two=y is not None, width=width
        )
        ctx.save_for_backward(total, weight)
        ctx.epsilon, ctx.dtypes = epsilon, (x.dtype, None if y is None else y.dtype)
        return total, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total, weight = ctx.saved_tensors
        size = total.shape[-1]
        of_total, of_out = (gradient.contiguous() for gradient in gradients)
        out = torch.empty_like(total)
        width = triton.next_power_of_2(size)
        _add_norm_backward[(total.numel() // size,)](
            total, weight, of_out, of_total, out, size, ctx.epsilon, width=width
        )
        of_x, of_y = (None if dtype is None else out.to(dtype) for dtype in ctx.dtypes)
        return of_x, of_y, None, None, None


def add_norm(x: Tensor, y: Tensor | None, weight: Tensor, shift: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x + y, (...,C) and contiguous, and the layer norm of that; without y, x itself and its layer norm."""
    return _AddNorm.apply(x, y, weight, shift, epsilon)
