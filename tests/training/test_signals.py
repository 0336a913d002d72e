"""Signals are noted once, by all blocks that wait for one."""

import signal

import pytest

from jaxlab.training.signals import StopSignals


@pytest.fixture(autouse=True)
def own_handlers():
  """A shell starts what it puts into the background with SIGINT ignored."""
  inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, inherited)


def test_the_first_is_noted_and_the_second_has_its_previous_effect(capsys):
  with StopSignals(note="stopping.") as signals:
    assert not signals.requested(agree=True)
    signal.raise_signal(signal.SIGINT)
    assert signals.requested(agree=True) and signals.signum == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  assert capsys.readouterr().err == "SIGINT: stopping.\n"
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_block_inside_another_one_notes_for_both(capsys):
  with StopSignals(note="stopping.") as outer:
    with StopSignals() as inner:
      signal.raise_signal(signal.SIGINT)
      assert inner.signum == outer.signum == signal.SIGINT
      assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with StopSignals() as later:
      assert later.signum is None
  assert capsys.readouterr().err == "SIGINT: stopping.\n"


def test_handlers_come_back():
  before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
  with StopSignals(), StopSignals():
    pass
  assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before
