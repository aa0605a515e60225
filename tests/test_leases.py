"""Claims on work: of several workers one has it, a silent one loses it, and notices."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import threading
import time
import types

import pytest

from omarl_jax import UserError, leases
from omarl_jax.leases import Leases, Outdated


@pytest.fixture
def short(monkeypatch):
    """A lease that is short, among workers that seem to be on machines of their own."""
    monkeypatch.setattr(leases, "SECONDS", 0.5)
    monkeypatch.setattr(leases, "_machine", lambda: "")


@pytest.fixture
def mute(monkeypatch):
    """Workers that give no sign of life but the first."""

    class Mute(threading.Thread):
        def start(self):
            pass

        def join(self):
            pass

    monkeypatch.setattr(leases, "threading", types.SimpleNamespace(Thread=Mute, Event=threading.Event))


def taken(folder, names, versions=""):
    with Leases(folder, versions).claim(names) as claim:
        return claim is not None


def test_of_many_workers_one_has_the_work(tmp_path):
    """They start at the same instant, again and again, each with several names of which others want some."""
    having: list[str] = []
    most = []
    start = threading.Barrier(8)

    def work(number):
        here = Leases(tmp_path)
        for turn in range(20):
            start.wait()
            names = [f"{turn}-{(number + i) % 4}" for i in range(2)]
            with here.claim(names) as claim:
                if claim is not None:
                    having.extend(names)
                    most.append(max(having.count(name) for name in having))
                    time.sleep(0.001)
                    for name in names:
                        having.remove(name)
                claims[number, turn] = claim is not None

    claims: dict[tuple[int, int], bool] = {}
    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claims) == 160
    assert set(most) == {1}


def test_numbers_rise_and_what_is_given_back_is_free(tmp_path):
    for number in (1, 2, 3):
        with Leases(tmp_path).claim(["a", "b"]) as claim:
            assert claim.numbers == {"a": number, "b": number}
            claim.check()
            assert not taken(tmp_path, ["c", "b"])
            assert taken(tmp_path, ["c"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"{name}.{n}" for name in "abc" for n in (1, 2, 3)),
        "workers",
    ]
    assert not list((tmp_path / "workers").iterdir())


def test_a_claim_takes_all_names_or_none(tmp_path):
    with Leases(tmp_path).claim(["b"]):
        assert not taken(tmp_path, ["a", "b"])
        assert taken(tmp_path, ["a"])


def test_a_silent_worker_loses_its_claim_and_notices(tmp_path, short, mute):
    waiting = Leases(tmp_path)
    with Leases(tmp_path).claim(["a", "b"]) as old:
        old.check()
        started = time.monotonic()
        with waiting.wait(["b"]) as new:
            assert time.monotonic() - started > 0.5  # it cannot know for how long the other was silent before
            assert new.numbers["b"] > old.numbers["b"]
            with pytest.raises(Outdated, match=r"has taken over 'b' .* no sign of life for 0\.5 seconds: it ends here"):
                old.check()
            with pytest.raises(Outdated):
                old.check("b")
            old.check("a")
            old.give_back()
            new.check()
            assert not taken(tmp_path, ["b"])


def test_a_worker_that_is_busy_keeps_its_claim(tmp_path, short):
    here = Leases(tmp_path)
    with Leases(tmp_path).claim(["a"]) as claim:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            with here.claim(["a"]) as other:
                assert other is None
            time.sleep(0.05)
        claim.check()


def test_silence_counts_from_the_first_look_on_the_clock_of_the_waiting(tmp_path, short, mute, monkeypatch):
    """Times of files, which another machine's clock may have written, say nothing."""
    with Leases(tmp_path).claim(["a"]):
        for path in tmp_path.rglob("*"):
            os.utime(path, (1, 1))
        assert not taken(tmp_path, ["a"])
        for path in tmp_path.rglob("*"):
            os.utime(path, (2**33, 2**33))
        monkeypatch.setattr(leases.time, "time", lambda: 0.0)
        with Leases(tmp_path).wait(["a"]) as claim:
            assert claim.numbers == {"a": 2}


def end_abruptly(folder):
    with Leases(folder).claim(["a"]):
        os._exit(1)


@pytest.mark.parametrize("asked", [True, False])  # in a container often nobody asks how a process has ended
def test_who_died_on_this_machine_is_not_waited_for(tmp_path, asked):
    """After a kill, a sweep that is started again goes on at once."""
    process = multiprocessing.get_context("spawn").Process(target=end_abruptly, args=[tmp_path])
    process.start()
    multiprocessing.connection.wait([process.sentinel])
    if asked:
        process.join()
    assert len(list((tmp_path / "workers").iterdir())) == 1
    assert taken(tmp_path, ["a"])
    assert sorted(path.name for path in tmp_path.glob("a.*")) == ["a.1", "a.2"]
    process.join()


def test_who_died_on_another_machine_is_waited_for(tmp_path, short):
    process = multiprocessing.get_context("spawn").Process(target=end_abruptly, args=[tmp_path])
    process.start()
    process.join()
    here = Leases(tmp_path)
    with here.claim(["a"]) as claim:
        assert claim is None
    with here.wait(["a"]) as claim:
        assert claim.numbers == {"a": 2}


def test_a_worker_that_saw_an_old_folder_does_not_get_what_others_have(tmp_path, monkeypatch):
    """A client of a network's file system may list a folder as it was some seconds ago."""
    with Leases(tmp_path).claim(["a"]):
        pass
    late = Leases(tmp_path)
    before = late._standing()
    assert taken(tmp_path, ["a"])
    monkeypatch.setattr(late, "_standing", lambda: before)
    for after in (contextlib.nullcontext(), Leases(tmp_path).claim(["a"])):  # free by now, or not
        with after, late.claim(["a"]) as other:
            assert other is None


def test_workers_of_different_versions_are_one_sentence(tmp_path):
    with (
        Leases(tmp_path / "leases", "jax 1, numpy 2").claim(["a"]),
        pytest.raises(UserError, match=rf"A worker on '{tmp_path}' has jax 1, and this one jax 3: install the same\."),
    ):
        taken(tmp_path / "leases", ["a"], "jax 3, numpy 2")
    assert taken(tmp_path / "leases", ["a"], "jax 3, numpy 2")


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "leases").write_text("no folder")
    with pytest.raises(UserError, match="leases' cannot be written: File exists"):
        taken(tmp_path / "leases", ["a"])
