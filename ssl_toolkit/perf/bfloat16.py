"""Where bfloat16 is a gain in speed."""

from __future__ import annotations

import torch


def has_native_bf16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 natively, so that autocast is a gain in speed.

    A CPU does with AVX512-BF16 (which every CPU with AMX has too); without it bfloat16 is emulated and slower than
    float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported()
    return False
