"""Runs a script's main and exits with its code, also if the reader of its output is gone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

READER_GONE = 141  # 128 + SIGPIPE, the exit code of other programs in this case
INTERRUPTED = 130  # 128 + SIGINT


def run_script(main: Callable[[], int]) -> NoReturn:
    """Run a script's `main` and exit with its code.

    If the reader of stdout or stderr ends first, as in `... | head`, the script ends without a message. After Ctrl-C it
    ends with one line.
    """
    try:
        try:
            code = main()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):  # the interpreter flushes both at its end
            os.dup2(nowhere, stream.fileno())
        code = READER_GONE
    sys.exit(code)
