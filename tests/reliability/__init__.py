"""The experiments that test the promises of docs/operations.md, one function each; tests and table run the same ones.

    python -m tests.reliability                     # all promises, in full size: about a quarter of an hour
    python -m tests.reliability --only SIGTERM
    python -m tests.reliability --only memory --minutes 60

Every experiment starts the real daemon (or the real application) in a folder of its own, applies the condition of the
promise, and returns a Finding: the figures of this run, and whether the promise was kept.
"""
