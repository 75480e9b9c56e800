"""Worker processes that compute with one thread each and end with their parent."""

import os
import threading
import time
from concurrent.futures import Executor


def process_pool(jobs: int) -> Executor:
    """Return a pool of processes that compute with one thread each.

    Args:
        jobs: Number of processes.

    Returns:
        A loky executor.
    """
    import loky

    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    pool: Executor = loky.ProcessPoolExecutor(
        max_workers=jobs,
        env=dict.fromkeys(threads, "1"),
        timeout=600,
        initializer=_end_with,
        initargs=(os.getpid(),),
    )
    return pool


def _end_with(parent: int) -> None:
    # a worker whose caller was killed must not write to its files any more
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
