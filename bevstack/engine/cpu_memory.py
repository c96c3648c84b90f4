"""glibc's memory allocator, told to keep what each step on a CPU frees and asks for again, in training and inference.

Entry points call it, an import never does. Huge pages, which save page faults once more, are a setting that glibc
reads when the process starts: docs/inference.md, Memory on a CPU.
"""

from __future__ import annotations

import ctypes
import os

KEEP_MALLOC = "BEVSTACK_KEEP_MALLOC"
# parameters of mallopt(3)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Serve large tensors from the heap and keep it, instead of mapping fresh pages and clearing them each time.

    By default glibc maps every large tensor anew and gives it back when freed, so that each step touches each page for
    the first time. Costs memory that is held until the process ends; there is no way back in the same process. Does
    nothing where the C library is not glibc, or where the environment variable ``BEVSTACK_KEEP_MALLOC`` is 1.

    Returns:
        Whether the allocator took the settings.
    """
    if os.environ.get(KEEP_MALLOC) == "1":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26))
    return all(library.mallopt(parameter, value) == 1 for parameter, value in settings)
