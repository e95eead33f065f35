"""Progress bars, and Ctrl-C between two steps."""

import os
import signal
import threading

import pytest

from invert3d_core.cli.command import Bar, InputError, chosen_device, peak_memory_mb, stopping_between_steps
from invert3d_core.cli.command import writable_folder as writable

posix = pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is a POSIX signal here")


@pytest.fixture
def ctrl_c():
    """Press Ctrl-C, with Python's own handler in place whoever runs the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@posix
def test_ctrl_c_is_taken_up_between_steps_and_a_second_one_at_once(ctrl_c):
    steps = []
    with pytest.raises(KeyboardInterrupt), stopping_between_steps() as check, Bar("work", check) as bar:
        for step in range(1, 5):
            if step == 2:
                ctrl_c()
            steps.append(step)  # the step that was under way comes to its end
            bar(step, 4)
    assert steps == [1, 2]
    assert (bar.first, bar.step, bar.total) == (1, 2, 4)
    with stopping_between_steps() as check:
        check()
        ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()


@posix
def test_a_job_that_ignores_ctrl_c_goes_on_ignoring_it(ctrl_c):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stopping_between_steps() as check:
        ctrl_c()
        check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_other_threads_can_run_commands(ctrl_c):
    seen = []

    def work():
        with stopping_between_steps() as check:
            check()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_the_bar_shows_metrics_and_where_a_resumed_job_began(capsys):
    with Bar("learning") as bar:
        bar(40, 50)
        bar(41, 50, metrics={"loss": 0.123456})
        bar(50, 50, metrics={"validation_loss": 2.0})
    out, err = capsys.readouterr()
    assert out == ""
    last = err.replace("\r", "\n").splitlines()[-1]
    assert last.startswith("learning: 100%")
    assert "50/50" in last
    assert "loss 0.1235, validation loss 2" in last
    assert bar.first == 40
    with Bar("nothing"):
        pass
    assert capsys.readouterr().err == ""


def test_folders_are_tried_before_the_work(tmp_path):
    assert writable(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        writable(tmp_path / "file")
    if os.name == "posix" and os.getuid() != 0:  # nothing is forbidden to root
        (tmp_path / "shut").mkdir(mode=0o500)
        with pytest.raises(PermissionError):
            writable(tmp_path / "shut")


def test_devices():
    assert chosen_device(None) is None
    assert str(chosen_device("cpu")) == "cpu"
    for name in ("abacus", "cuda:99", ""):
        with pytest.raises(InputError, match="cannot be used here"):
            chosen_device(name)


def test_peak_memory_is_what_this_process_holds_at_least():
    peak = peak_memory_mb()
    assert peak is None if os.name != "posix" else 50 < peak < 100_000
