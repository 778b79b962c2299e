"""Signals: who handles them inside and afterwards. Kills of real processes are in `test_killed`."""

import signal

import pytest

from reptile_jax.app import signals


def test_what_handled_signals_before_does_so_again():
    def mine(*_): ...

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(signals.Interrupted), signals.handled(signals.interrupt):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGTERM, before)
