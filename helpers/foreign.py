"""Other people's packages at work: quiet, seeded, and without a trace in this process."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import random
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator

import numpy as np
import torch

# package -> the command that installs it
INSTALL = {
    "harmonypy": 'pip install "harmonypy>=2.1"',
    "mofapy2": 'pip install "mofapy2>=0.7.2"',
    "scanorama": 'pip install "scanorama>=1.7.4"  # needs a C++ compiler; or: make peers',
    "scvi": 'pip install "scvi-tools==1.4.2"  # or: make peers',
}


@contextlib.contextmanager
def isolated(seed: int, package: str) -> Iterator[None]:
    """Where a package works: silent, seeded, in a folder of its own; what it may change is put back afterwards.

    That is: random states, environment, logging, warnings, threads and what happens at Ctrl-C. Raises
    `ModuleNotFoundError` with the command that installs the package, and `RuntimeError` where it would leave Python.
    Introduced in notebook 07.
    """
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(f"{package} is not installed: {INSTALL[package]}", name=package)
    said = io.StringIO()
    with contextlib.ExitStack() as after, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _remember(after)
        importlib.import_module(package)  # before the streams are changed: its loggers may keep them
        logging.disable(logging.CRITICAL)
        after.enter_context(contextlib.chdir(after.enter_context(tempfile.TemporaryDirectory())))
        after.enter_context(contextlib.redirect_stdout(said))
        after.enter_context(contextlib.redirect_stderr(said))
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        except SystemExit as gone:  # mofapy2 leaves Python where its data are wrong, lightning where it is interrupted
            if isinstance(gone.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            last = " ".join(said.getvalue().split())[-300:]
            raise RuntimeError(f"{package} stopped: {gone.__context__ or last or 'no reason given'}") from gone


def _remember(after: contextlib.ExitStack) -> None:
    """Have global state put back when `after` ends."""
    after.callback(random.setstate, random.getstate())
    after.callback(np.random.set_state, np.random.get_state())
    after.callback(os.environ.update, dict(os.environ))
    after.callback(_forget, set(os.environ))
    after.callback(logging.disable, logging.root.manager.disable)
    after.callback(torch.set_num_threads, torch.get_num_threads())
    for flag in ("deterministic", "benchmark"):
        after.callback(setattr, torch.backends.cudnn, flag, getattr(torch.backends.cudnn, flag))
    at_interrupt = signal.getsignal(signal.SIGINT)
    if at_interrupt and threading.current_thread() is threading.main_thread():
        after.callback(signal.signal, signal.SIGINT, at_interrupt)  # lightning ignores Ctrl-C for good after one
    after.enter_context(np.errstate())
    after.enter_context(torch.random.fork_rng())


def _forget(kept: set[str]) -> None:
    for name in set(os.environ) - kept:
        del os.environ[name]
