"""The experiments behind RELIABILITY's promises, one function each: the tests run them, and so does the table.

    python -m tests.reliability                     # all promises, in full size: about a quarter of an hour
    python -m tests.reliability --only SIGTERM
    python -m tests.reliability --only memory --soak-minutes 60

Every experiment starts the real daemon (or the real application) in a folder of its own, does to it what the promise
speaks of, and gives a Finding: the figures of this run, and whether the promise was kept.
"""
