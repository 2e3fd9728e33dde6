"""What this machine's processor can do."""

from pathlib import Path


def has_native_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether this processor multiplies bf16 natively; emulated, it is many times slower than fp32."""
    return cpuinfo.exists() and any(flag in cpuinfo.read_text() for flag in ("avx512_bf16", "amx_bf16"))
