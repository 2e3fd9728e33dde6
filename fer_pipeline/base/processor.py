"""Features of this machine's processor."""

from pathlib import Path


def has_native_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this processor multiplies bf16 natively. Emulated bf16 is many times slower than fp32."""
    return cpuinfo.exists() and any(flag in cpuinfo.read_text() for flag in ("avx512_bf16", "amx_bf16"))
