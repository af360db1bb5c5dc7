"""GPUs: the driver, the devices that torch sees, and a kernel that really runs on each."""

import shutil
from collections.abc import Iterator

from mmssl.doctor import Doing, Finding


def look() -> Iterator[Finding | Doing]:
    """None is no problem: everything also runs on the CPU."""
    yield Doing("import torch")
    try:
        import torch
    except Exception as error:  # whatever a library of C fails with
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        yield Finding("GPU", "problem", f"torch does not load: {reason}", "see packages above")
        return
    built = torch.version.cuda
    yield Doing("asking the GPU's driver")
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") and built is None:
            advice = "this torch is for CPUs: install one for CUDA (pytorch.org)"
            yield Finding("GPU", "warning", "there is a driver, but torch has no CUDA", advice)
        elif shutil.which("nvidia-smi"):
            advice = "update the driver, install a torch for an older CUDA, or ask for a GPU's node"
            found = f"there is a driver, but torch (CUDA {built}) sees no device"
            yield Finding("GPU", "warning", found, advice)
        else:
            yield Finding("GPU", "ok", "none; runs compute on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        yield Doing(f"computing on cuda:{index}")
        yield _device(index)


def _device(index: int) -> Finding:
    import torch

    what = f"GPU {index}"
    try:
        name = torch.cuda.get_device_name(index)
        major, minor = torch.cuda.get_device_capability(index)
        free, whole = torch.cuda.mem_get_info(index)
        rows = torch.arange(64.0, device=f"cuda:{index}").reshape(8, 8)
        right = (rows @ rows.T).cpu().equal(rows.cpu() @ rows.cpu().T)
        bf16 = torch.cuda.is_bf16_supported()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        advice = (
            "this torch may not be built for this GPU or driver (pytorch.org); device=cpu works"
        )
        return Finding(what, "problem", reason, advice)
    found = (
        f"{name}, CUDA {torch.version.cuda}, capability {major}.{minor}, "
        f"{'bf16' if bf16 else 'no bf16'}, {free / 1e9:.1f} of {whole / 1e9:.1f} GB free"
    )
    if not right:
        return Finding(what, "problem", f"{found}; computes wrongly", "do not use it: device=cpu")
    if free < whole / 2:
        return Finding(what, "warning", found, "somebody else computes on it: nvidia-smi")
    return Finding(what, "ok", found)
