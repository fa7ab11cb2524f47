"""Sixteen numbers at a time in numba: a vector type and the few operations on it that the compiled kernels use.

Compilers turn plain loops into vector code when they can prove that arrays do not overlap; here they rarely can. One
`Lanes` is 512 bits of float32; a processor with shorter registers, and float64, take several for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import Signature
from numba.extending import intrinsic, models, register_model

WIDTH = 16
OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}  # NaN and infinity are kept
part = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)  # a function of compiled ones only

_INT = ir.IntType(32)
_EXP = {32: (7, 23, 127, -87.0), 64: (13, 52, 1023, -708.0)}  # terms, bits of the mantissa, bias, least argument
_LN2 = {32: (0.693359375, -2.12194440054690e-4), 64: (6.93145751953125e-1, 1.42860682030941723212e-6)}  # high, rest

Emit = Callable[..., ir.Value]


class Lanes(types.Type):
    """Sixteen floats of one type."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")


def _vector(lanes: Lanes) -> ir.VectorType:
    return ir.VectorType(ir.FloatType() if lanes.dtype.bitwidth == 32 else ir.DoubleType(), WIDTH)


@register_model(Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: object, lanes: Lanes) -> None:
        super().__init__(manager, lanes, _vector(lanes))


def _constant(vector: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(vector, [value] * WIDTH)


def _call(builder: ir.IRBuilder, name: str, *values: ir.Value) -> ir.Value:
    vector = values[0].type
    suffix = f"v{WIDTH}f{32 if isinstance(vector.element, ir.FloatType) else 64}"
    kind = ir.FunctionType(vector, [vector] * len(values))
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.{suffix}"), values)


def _larger(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _pointer(context: object, builder: ir.IRBuilder, array: types.Array, value: ir.Value, index: ir.Value) -> ir.Value:
    data = context.make_array(array)(context, builder, value).data
    return builder.bitcast(builder.gep(data, [index]), _vector(Lanes(array.dtype)).as_pointer())


@intrinsic
def load(typing: object, array: types.Array, index: types.Integer) -> tuple[Signature, Emit]:
    """Return array[index : index + 16]; the array has one axis and no gaps."""
    def emit(context: object, builder: ir.IRBuilder, signature: Signature, args: Sequence[ir.Value]) -> ir.Value:
        pointer = _pointer(context, builder, array, *args)
        return builder.load(pointer, align=array.dtype.bitwidth // 8)
    return Lanes(array.dtype)(array, types.intp), emit


@intrinsic
def store(typing: object, array: types.Array, index: types.Integer, lanes: Lanes) -> tuple[Signature, Emit]:
    """Write sixteen numbers to array[index : index + 16]."""
    def emit(context: object, builder: ir.IRBuilder, signature: Signature, args: Sequence[ir.Value]) -> ir.Value:
        builder.store(args[2], _pointer(context, builder, array, *args[:2]), align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()
    return types.void(array, types.intp, lanes), emit


@intrinsic
def splat(typing: object, value: types.Float) -> tuple[Signature, Emit]:
    """Return one number sixteen times."""
    def emit(context: object, builder: ir.IRBuilder, signature: Signature, args: Sequence[ir.Value]) -> ir.Value:
        vector = _vector(signature.return_type)
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), args[0], ir.Constant(_INT, 0))
        zeros = ir.Constant(ir.VectorType(_INT, WIDTH), [0] * WIDTH)
        return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)
    return Lanes(value)(value), emit


def _of_two(emit: Emit) -> Callable[..., Lanes]:
    @intrinsic
    def operation(typing: object, a: Lanes, b: Lanes) -> tuple[Signature, Emit]:
        return a(a, b), lambda context, builder, signature, args: emit(builder, *args)
    return operation


add, sub = _of_two(ir.IRBuilder.fadd), _of_two(ir.IRBuilder.fsub)
mul, div = _of_two(ir.IRBuilder.fmul), _of_two(ir.IRBuilder.fdiv)
larger = _of_two(_larger)  # the second where one of them is NaN


def _of_one(name: str) -> Callable[..., Lanes]:
    @intrinsic
    def operation(typing: object, a: Lanes) -> tuple[Signature, Emit]:
        return a(a), lambda context, builder, signature, args: _call(builder, name, *args)
    return operation


root, ceil = _of_one("sqrt"), _of_one("ceil")


@intrinsic
def fma(typing: object, a: Lanes, b: Lanes, c: Lanes) -> tuple[Signature, Emit]:
    """Return a b + c, fused where the processor can."""
    def emit(context: object, builder: ir.IRBuilder, signature: Signature, args: Sequence[ir.Value]) -> ir.Value:
        return _call(builder, "fmuladd", *args)
    return a(a, b, c), emit


@intrinsic
def choose(typing: object, a: Lanes, b: Lanes, c: Lanes, d: Lanes) -> tuple[Signature, Emit]:
    """Return c where a > b, and d elsewhere, also where one of them is NaN."""
    def emit(context: object, builder: ir.IRBuilder, signature: Signature, args: Sequence[ir.Value]) -> ir.Value:
        return builder.select(builder.fcmp_ordered(">", *args[:2]), *args[2:])
    return a(a, b, c, d), emit


@intrinsic
def choose_equal(typing: object, a: Lanes, b: Lanes, c: Lanes, d: Lanes) -> tuple[Signature, Emit]:
    """Return c where a = b, and d elsewhere."""
    def emit(context: object, builder: ir.IRBuilder, signature: Signature, args: Sequence[ir.Value]) -> ir.Value:
        return builder.select(builder.fcmp_ordered("==", *args[:2]), *args[2:])
    return a(a, b, c, d), emit


@intrinsic
def store_whole(typing: object, array: types.Array, index: types.Integer, lanes: Lanes) -> tuple[Signature, Emit]:
    """Write the whole parts of sixteen numbers to an array of int32."""
    def emit(context: object, builder: ir.IRBuilder, signature: Signature, args: Sequence[ir.Value]) -> ir.Value:
        whole = builder.fptosi(args[2], ir.VectorType(_INT, WIDTH))
        data = builder.gep(context.make_array(array)(context, builder, args[0]).data, [args[1]])
        builder.store(whole, builder.bitcast(data, whole.type.as_pointer()), align=4)
        return context.get_dummy_value()
    return types.void(array, types.intp, lanes), emit


@intrinsic
def exp(typing: object, x: Lanes) -> tuple[Signature, Emit]:
    """Return e^x for x <= 0, to about one unit in the last place; 0 for what the type cannot hold, and for NaN."""
    def emit(context: object, builder: ir.IRBuilder, signature: Signature, args: Sequence[ir.Value]) -> ir.Value:
        vector, bits = _vector(x), x.dtype.bitwidth
        (terms, mantissa, bias, least), (high, rest) = _EXP[bits], _LN2[bits]
        bound = _constant(vector, least)
        z = _larger(builder, args[0], bound)
        whole = _call(builder, "rint", builder.fmul(z, _constant(vector, 1 / math.log(2))))
        part = _call(builder, "fmuladd", whole, _constant(vector, -high), z)
        part = _call(builder, "fmuladd", whole, _constant(vector, -rest), part)
        found = _constant(vector, 1 / math.factorial(terms))
        for power in reversed(range(terms)):
            found = _call(builder, "fmuladd", found, part, _constant(vector, 1 / math.factorial(power)))
        integers = ir.VectorType(ir.IntType(bits), WIDTH)
        raised = builder.add(builder.fptosi(whole, integers), _constant(integers, bias))
        scale = builder.bitcast(builder.shl(raised, _constant(integers, mantissa)), vector)
        kept = builder.fcmp_ordered(">", args[0], bound)
        return builder.select(kept, builder.fmul(found, scale), _constant(vector, 0.0))
    return x(x), emit


@intrinsic
def transpose(typing: object, source: types.Array, start: types.Integer, target: types.Array,
              place: types.Integer) -> tuple[Signature, Emit]:
    """Write the transpose of the 16 x 16 numbers at source[start:] to target[place:]."""
    def emit(context: object, builder: ir.IRBuilder, signature: Signature, args: Sequence[ir.Value]) -> ir.Value:
        size, align = ir.VectorType(_INT, WIDTH), source.dtype.bitwidth // 8
        begin, end = _pointer(context, builder, source, *args[:2]), _pointer(context, builder, target, *args[2:])
        rows = [builder.load(builder.gep(begin, [ir.Constant(_INT, i)]), align=align) for i in range(WIDTH)]
        for step in (8, 4, 2, 1):  # rows i and i + step exchange the halves that lie off the diagonal
            low = ir.Constant(size, [WIDTH + j - step if j & step else j for j in range(WIDTH)])
            high = ir.Constant(size, [WIDTH + j if j & step else j + step for j in range(WIDTH)])
            for i in (i for i in range(WIDTH) if not i & step):
                a, b = rows[i], rows[i + step]
                rows[i], rows[i + step] = builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high)
        for i, row in enumerate(rows):
            builder.store(row, builder.gep(end, [ir.Constant(_INT, i)]), align=align)
        return context.get_dummy_value()
    return types.void(source, types.intp, target, types.intp), emit


@numba.njit(inline="always")
def zero(array: types.Array) -> Lanes:
    """Return sixteen zeros of the array's type."""
    return splat(array.dtype.type(0))
