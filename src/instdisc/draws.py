"""Counter-based randomness: a random number is a function of (seed, step, picture, column), and of nothing else.

There is no generator with a state. So the draws of a picture do not depend on which batch it came in, on the number of
ranks or workers, on gradient accumulation, or on a stop and resume in between; and a checkpoint need not save them.
The idea is that of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the mixing function is the
64-bit finaliser of SplitMix (Steele, Lea, Flood, OOPSLA 2014) with Stafford's constants ("variant 13", public domain),
applied once to the key of (seed, step, stream), then to the picture and to the column.
"""

from __future__ import annotations

import numpy as np
import torch

from instdisc.shapes import Float, Int, Tensor

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def _signed(word: int) -> int:
    """The same 64 bits as a signed integer, the only kind torch multiplies everywhere."""
    return word - (1 << 64) if word >= 1 << 63 else word


def _mix_word(word: int) -> int:
    """SplitMix's finaliser on one Python integer."""
    word = ((word ^ (word >> 30)) * _FIRST) & _WORD
    word = ((word ^ (word >> 27)) * _SECOND) & _WORD
    return word ^ (word >> 31)


def _mix(words: Tensor) -> Tensor:
    """The same finaliser on int64 tensors: products wrap, and the mask makes the arithmetic shift a logical one."""
    words = (words ^ ((words >> 30) & ((1 << 34) - 1))) * _signed(_FIRST)
    words = (words ^ ((words >> 27) & ((1 << 37) - 1))) * _signed(_SECOND)
    return words ^ ((words >> 31) & ((1 << 33) - 1))


def _key(seed: int, step: int, stream: int) -> int:
    key = 0
    for part in (seed, step, stream):
        key = _mix_word((key + (part & _WORD) * _GOLDEN + _GOLDEN) & _WORD)
    return key


def _words(indices: Tensor, columns: int, seed: int, step: int, stream: int) -> Tensor:
    """64 random bits for each (index, column), as int64 of shape (batch, columns)."""
    # An odd constant times (index + 1) separates the pictures, and so do the columns: distinct inputs to a bijection.
    rows = _mix((indices.long() + 1) * _signed(_GOLDEN) + _signed(_key(seed, step, stream)))
    steps = torch.arange(1, columns + 1, device=indices.device) * _signed(_GOLDEN)
    return _mix(rows[:, None] + steps[None, :])


def uniforms(
    indices: Int[Tensor, " batch"], columns: int, *, seed: int, step: int, stream: int = 0
) -> Float[Tensor, "batch columns"]:
    """Uniform float32 numbers in [0, 1), with 24 random bits each, on the device of `indices`.

    `stream` separates uses that share a seed and a step: one constant for each user, for instance one for each view.
    """
    words = _words(indices, columns, seed, step, stream)
    return ((words >> 40) & ((1 << 24) - 1)).to(torch.float32) * 2.0**-24


def integers(
    indices: Int[Tensor, " batch"], columns: int, high: int, *, seed: int, step: int, stream: int = 0
) -> Int[Tensor, "batch columns"]:
    """Uniform integers in [0, high), int64, on the device of `indices`; the bias is at most high / 2**62."""
    if high < 1:
        raise ValueError(f"high must be at least 1, got {high}")
    words = _words(indices, columns, seed, step, stream)
    return ((words >> 2) & ((1 << 62) - 1)) % high


def permutation(count: int, *, seed: int, step: int, stream: int = 0) -> np.ndarray:
    """A random order of range(count), int64: the order of an epoch (`step`), the same on every rank."""
    key = np.array([_key(seed, step, stream), _GOLDEN], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(count)
