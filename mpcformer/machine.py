"""What makes the difference on a busy or small machine: how threads wait, and how memory is kept."""

import ctypes
import gc
import os
import resource
from contextlib import suppress

# Parameters of glibc's mallopt, from malloc.h.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
KEPT_BYTES = 1 << 30
# Of a busy loop of GNU's OpenMP, whose default is 300,000.
SPIN_COUNT = "10000"
MOST_FILES, FEW_FILES = 1 << 16, 1 << 12
# Python looks for cycles among new containers when it has made so many more than it has freed, and among older ones
# each time after so many of these searches.
COLLECTION = 5000, 20, 20


def spin_briefly() -> None:
    """Let OpenMP's threads soon sleep while they wait for each other; to be called before torch is loaded.

    By default they spin for long. Where other processes need the cores, two threads of torch that spin for each other
    slow everything down many times. Threads that sleep at once cost a quarter of a training step on an idle machine,
    however. What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def collect_rarely() -> None:
    """Let Python look for cycles of unused objects more rarely; to be called before anything large is imported.

    Imports make many objects that all stay. With Python's own thresholds, a sixth of the time that it takes to load
    torch and transformers goes into looking through them again and again.
    """
    gc.set_threshold(*COLLECTION)


def open_many_files() -> int:
    """Allow this process as many open files as the system does, up to `MOST_FILES`; return how many that are.

    Systems usually allow 1,024 until a process asks for more. A server needs one for each connection, also of callers
    that it is about to turn away.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of large tensors for the next ones; to be called before threads allocate any.

    By default it gives the memory of every large tensor back to the kernel, which must clear it anew each time. What
    is kept, up to `KEPT_BYTES` at the end of the heap, counts for the process.

    Returns:
        Whether the C library has taken the settings; others than glibc may not.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # One arena, because the others cannot grow beyond 64 MiB in a piece.
    return all(mallopt(*each) == 1 for each in ((ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, KEPT_BYTES)))


def give_freed_memory_back() -> None:
    """Give what was freed back to the kernel, after work that needed much memory once; see `keep_freed_memory`.

    Nothing happens with another C library than glibc.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
