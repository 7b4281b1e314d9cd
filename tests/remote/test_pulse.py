"""What the front makes of an engine's heartbeats, and how soon it starts another engine.

Invariant tested: silence and a loop that does not come on are seen in time; loading, compiling and
steps at the usual pace are never taken for a hang; what died over requests is not given up.
"""

import gc
import sys
import tempfile
import threading
import time
import types

import pytest
import zmq

from plamo_ref.remote import heartbeat
from plamo_ref.remote.heartbeat import Heartbeat
from plamo_ref.remote.messages import Alive, Codec, Ready, Step
from plamo_ref.remote.pulse import COMPILING_SECONDS, Pulse
from plamo_ref.remote.restarts import MAX_DELAY, Life, Restarts

READY = Ready(1, 1, 1, 1)


def pulse_of(*messages: Alive | Ready | Step) -> Pulse:
    pulse = Pulse(10)
    for message in messages:
        pulse.hear(message)
    return pulse


@pytest.mark.parametrize("last", [Alive("idle", 500), Step([]), Alive("step", 3, 1)])
def test_silence_is_late_after_its_bound_and_a_word_ends_it(last):
    pulse = pulse_of(READY, last)
    pulse.pass_by(6)
    assert pulse.late <= 0
    pulse.pass_by(9)
    assert pulse.late > 0
    assert "no sign of life for 15 s" in str(pulse)
    pulse.hear(Alive("idle", 0))
    assert pulse.late <= 0


@pytest.mark.parametrize(
    ("alive", "is_late"),
    [
        (Alive("idle", 10**6), False),
        (Alive("loading", 10**6), False),
        (Alive("working", 9), False),
        (Alive("working", 11), True),
        (Alive("step", 9), False),
        (Alive("step", 11), True),
        (Alive("step", 200, expected=50), False),  # a long prompt on a slow machine
        (Alive("step", 211, expected=50), True),
        (Alive("compiling", COMPILING_SECONDS - 1), False),
        (Alive("compiling", COMPILING_SECONDS + 1), True),
    ],
)
def test_what_lasts_is_judged_by_what_it_is(alive, is_late):
    assert (pulse_of(READY, alive).late > 0) == is_late


def test_a_word_of_the_loop_itself_shows_that_it_has_come_on():
    pulse = pulse_of(READY, Alive("step", 11))
    assert pulse.late > 0
    pulse.hear(Step([]))
    assert pulse.late <= 0


def test_while_it_loads_silence_is_given_more_time_and_before_it_speaks_most():
    pulse = pulse_of(Alive("loading", 1))
    pulse.pass_by(59)
    assert pulse.late <= 0
    pulse.pass_by(2)
    assert pulse.late > 0
    new = pulse_of()
    new.pass_by(COMPILING_SECONDS - 1)
    assert new.late <= 0
    new.pass_by(2)
    assert new.late > 0


# --- the engine's side ----------------------------------------------------------------------------


@pytest.fixture
def heart():
    """A heart that watches this thread, and does not beat."""
    with zmq.Context() as context:
        yield Heartbeat(context, "ipc://nowhere", 60)


def test_the_pace_of_steps_is_learned_and_the_slowest_is_remembered(heart, monkeypatch):
    clock = types.SimpleNamespace(monotonic=lambda: clock.time, time=0.0)
    monkeypatch.setattr(heartbeat, "time", clock)

    def step(tokens: int, seconds: float) -> None:
        heart.now("step", tokens)
        clock.time += seconds
        heart.now("idle")

    def expected(tokens: int) -> float:
        heart.now("step", tokens)
        answer = heart.alive().expected
        heart._doing = ("idle", 0.0, 0)  # it was no step
        return answer

    heart.expect(num_parameters=5 * 10**8)
    assert expected(10) == pytest.approx(10)
    step(10, 0.1)
    assert expected(100) == pytest.approx(1)
    step(1, 0.5)
    assert expected(100) == pytest.approx(50)
    step(1, 0.1)
    assert 49 < expected(100) < 50


def test_a_loop_within_a_compiler_is_compiling(heart):
    heart.now("step", 1)
    assert heart.alive().phase == "step"
    compiler = types.ModuleType("triton.compiler.compiler")
    exec("def call(function): return function()", compiler.__dict__)
    assert compiler.call(heart.alive).phase == "compiling"
    heart.now("loading")
    assert compiler.call(heart.alive).phase == "loading"


@pytest.mark.parametrize("collects", [True, False])
def test_no_garbage_is_collected_while_python_holds_its_threads(heart, monkeypatch, collects):
    """A finalizer that waits there for a thread that ends would wait for ever."""
    seen, frames = [], sys._current_frames
    monkeypatch.setattr(sys, "_current_frames", lambda: (seen.append(gc.isenabled()), frames())[1])
    (gc.enable if collects else gc.disable)()
    try:
        assert heart.alive().phase == "loading"
        assert (seen, gc.isenabled()) == ([False], collects)
    finally:
        gc.enable()


def test_the_heart_beats_while_the_loop_does_not_come_on():
    context = zmq.Context()
    with tempfile.TemporaryDirectory() as folder, context.socket(zmq.PULL) as front:
        address = f"ipc://{folder}/x"
        front.bind(address)
        front.rcvtimeo = 20_000
        with Heartbeat(context, address, 0.01) as heart:
            heart.now("step", 1)
            end = time.monotonic() + 0.2
            while time.monotonic() < end:  # a loop that hangs, in Python
                pass
            heart.now("idle")
        beats = [Codec().for_front(front.recv())]
        while front.poll(100):
            beats.append(Codec().for_front(front.recv()))
        hung = [beat for beat in beats if isinstance(beat, Alive) and beat.phase == "step"]
        assert len(hung) > 1
        assert hung[-1].seconds > hung[0].seconds
        assert "heartbeat" not in {thread.name for thread in threading.enumerate()}
    context.destroy()


# --- restarts -------------------------------------------------------------------------------------

BROKEN = Life()
POISONED = Life(ready_seconds=1, num_requests=3)
SERVED = Life(ready_seconds=1, served=True)


def delays(most: int, *lives: Life) -> list[float | None]:
    restarts = Restarts(most)
    return [restarts.delay_after(life) for life in lives]


def test_an_engine_that_achieves_nothing_is_given_up_and_started_ever_later():
    assert delays(3, *[BROKEN] * 4) == [0.5, 1, 2, None]


@pytest.mark.parametrize("life", [POISONED, SERVED, Life(ready_seconds=3600)])
def test_others_are_started_again_for_ever_at_a_bounded_pace(life):
    found = delays(1, *[life] * 100)
    assert None not in found
    assert max(found) == (MAX_DELAY if life is POISONED else 0.5)


def test_what_works_again_has_all_its_lives_again():
    again = [BROKEN, BROKEN, SERVED, BROKEN, BROKEN, BROKEN]
    assert delays(2, *again) == [0.5, 1, 0.5, 1, None, None]


@pytest.mark.parametrize("life", [POISONED, SERVED, BROKEN])
def test_zero_restarts_are_none_at_all(life):
    assert delays(0, life) == [None]
