"""The values that a weight has after bitsandbytes quantized it to 4 bits, ten times faster than bitsandbytes on a CPU.

bitsandbytes rounds each value, divided by the largest of its block of 64, to one of 16. Which one hangs on the upper
half of the quotient's bits, but for one interval around each of the 15 thresholds, so one look into a table answers
for nearly all; the table and the thresholds are found by asking bitsandbytes.

Source: Dettmers et al. 2023 (arXiv:2305.14314), section 3; `bitsandbytes.functional.quantize_4bit`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from rankloom.config import QuantizationConfig

BLOCK = 64  # the blocksize of Linear4bit
_STATISTICS_BLOCK = 256  # the blocksize of the double quantization
_INTEGERS = {2: (torch.int16, 0x7FFF), 4: (torch.int32, 0x7FFFFFFF)}


class Table(NamedTuple):
    """What a quotient becomes, by the upper 16 of its 32 bits.

    Attributes:
        values: The value, or NaN where the lower bits decide.
        thresholds: The largest quotient that becomes `below`, where the lower bits decide.
        below: The value up to the threshold.
        above: The value beyond.
    """

    values: torch.Tensor
    thresholds: torch.Tensor
    below: torch.Tensor
    above: torch.Tensor


class RoundTrip:
    """Quantizes and dequantizes, as the search's base was.

    Attributes:
        dtype: What the base's weights were loaded as before they were quantized, and are dequantized to.
    """

    def __init__(self, quantization: QuantizationConfig, dtype: torch.dtype, device: torch.device) -> None:
        """Ask bitsandbytes for its table.

        Args:
            quantization: How the search quantized its base.
            dtype: Its compute dtype.
            device: Where to compute.
        """
        self.dtype = dtype
        self._kind = quantization.bnb_4bit_quant_type
        self._double = quantization.bnb_4bit_use_double_quant
        self._table = _ask(self._kind, device)

    def largest(self, block: torch.Tensor) -> torch.Tensor:
        """Return the largest magnitude of each 64 values, in fp32."""
        values = block.to(self.dtype).reshape(-1, BLOCK)
        integer, magnitude = _INTEGERS[values.itemsize]
        # Without the sign, floating point numbers are ordered as their bits are, and integers are compared faster.
        return (values.view(integer) & magnitude).amax(-1).view(self.dtype).float()

    def scales(self, largest: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Find what the blocks of one tensor are divided by and multiplied with.

        Args:
            largest: What `largest` returned for each part of the tensor, in order.

        Returns:
            Two vectors with one number a block: the divisors' inverse, and the factors, which differ from the divisors
            if they are quantized too.
        """
        from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

        divisors = torch.cat(list(largest))
        inverse = 1.0 / divisors.clamp(min=1e-38)
        if not self._double:
            return inverse, divisors
        offset = divisors.mean()
        codes, state = quantize_blockwise(divisors - offset, blocksize=_STATISTICS_BLOCK)
        return inverse, dequantize_blockwise(codes, state) + offset

    def restore(self, out: torch.Tensor, inverse: torch.Tensor, factors: torch.Tensor) -> None:
        """Replace values by what they are after the round trip.

        Args:
            out: fp32, of any shape; its number of elements is a multiple of 64.
            inverse: Of its blocks.
            factors: Of its blocks.
        """
        blocks = out.view(-1, BLOCK)
        if self.dtype != torch.float32:
            blocks.copy_(blocks.to(self.dtype))
        blocks.mul_(inverse[:, None])
        flat = out.view(-1)
        # Unsigned: the shift keeps the sign, which the mask takes away.
        cells = (flat.view(torch.int32) >> 16).bitwise_and_(0xFFFF)
        values = torch.index_select(self._table.values, 0, cells)
        if len(rare := _where_nan(values)):
            cell, quotient = cells[rare], flat[rare]
            above = quotient > self._table.thresholds[cell]
            values[rare] = torch.where(above, self._table.above[cell], self._table.below[cell])
        torch.mul(values.view(-1, BLOCK), factors[:, None], out=blocks)
        if self.dtype != torch.float32:
            blocks.copy_(blocks.to(self.dtype))

    def slowly(self, rows: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """Return rows after the round trip by bitsandbytes itself, with factors from `scales`; as fp32."""
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        codes, state = quantize_4bit(rows.to(self.dtype).contiguous(), blocksize=BLOCK, quant_type=self._kind)
        state.absmax = factors
        return dequantize_4bit(codes, state).float()

    def whole(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return a matrix after the round trip by bitsandbytes itself, for rows that are no multiple of 64.

        Of such a matrix, bitsandbytes 0.50 on a CPU takes some blocks' factors for others'; so the search's base did.
        """
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        codes, state = quantize_4bit(
            matrix.to(self.dtype).contiguous(),
            blocksize=BLOCK,
            compress_statistics=self._double,
            quant_type=self._kind,
        )
        return dequantize_4bit(codes, state).float()


def _where_nan(values: torch.Tensor) -> torch.Tensor:
    if values.device.type != "cpu":
        return values.isnan().nonzero().view(-1)
    return torch.from_numpy(np.flatnonzero(np.isnan(values.numpy())))  # four times as fast as torch's


def _ask(kind: str, device: torch.device) -> Table:
    cells = torch.arange(1 << 16, dtype=torch.int32) << 16
    lowest, highest = cells, cells | 0xFFFF  # of the magnitude, whatever the sign
    first, last = _coded(lowest, kind, device), _coded(highest, kind, device)
    split = first != last
    # Bisection for the largest magnitude in each split cell that is still coded as the first one is.
    inside, outside = lowest[split], highest[split]
    while (outside - inside > 1).any():
        middle = inside + (outside - inside) // 2
        same = _coded(middle, kind, device) == first[split]
        inside, outside = torch.where(same, middle, inside), torch.where(same, outside, middle)
    negative = inside < 0
    thresholds, below, above = torch.zeros(len(cells)), first.clone(), last.clone()
    # The last float on the side of the smaller values: with a minus sign, that is the outer one.
    thresholds[split] = torch.where(negative, outside, inside).view(torch.float32)
    below[split] = torch.where(negative, last[split], first[split])
    above[split] = torch.where(negative, first[split], last[split])
    values = torch.where(split, float("nan"), first)
    return Table(*(part.to(device) for part in (values, thresholds, below, above)))


def _coded(bits: torch.Tensor, kind: str, device: torch.device) -> torch.Tensor:
    """What bitsandbytes makes of floats in a block whose largest magnitude is 1."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    blocks = torch.zeros(len(bits), BLOCK)
    blocks[:, 0] = 1
    blocks[:, 1] = bits.view(torch.float32).nan_to_num().clamp(-1, 1)
    codes, state = quantize_4bit(blocks.to(device), blocksize=BLOCK, quant_type=kind)
    return dequantize_4bit(codes, state)[:, 1].float().cpu()
