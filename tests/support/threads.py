"""Works that run at once, in threads that take turns as often as Python allows."""

import sys
import threading
from contextlib import contextmanager


@contextmanager
def switching_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def in_threads(*works):
    """Run all ``works`` at once; what each raised, or None."""
    raised = [None] * len(works)
    barrier = threading.Barrier(len(works))

    def run(number, work):
        barrier.wait()
        try:
            work()
        except BaseException as error:
            raised[number] = error

    threads = [threading.Thread(target=run, args=each) for each in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised
