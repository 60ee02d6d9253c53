"""Everything arrives, nothing is sent twice without need, and whoever waits says what for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pacs.made_up import Clock, MadeUpArchive, queue
from ucseg_runtime.errors import ArchiveRefusedError, ArchiveUnreachableError
from ucseg_runtime.pacs.back_off import BackOff
from ucseg_runtime.pacs.courier import Courier, CourierReport
from ucseg_runtime.pacs.outbox import Outbox
from ucseg_runtime.pacs.spool import Spool, opened_spool

GONE = ArchiveUnreachableError("nobody there.")


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with opened_spool(tmp_path / "spool", b"secret") as opened:
        yield opened


class Told(list[str]):
    """Lines for people."""


def courier_of(outbox: Outbox, archive: MadeUpArchive, clock: Clock, told: list[str] | None = None) -> Courier:
    report = CourierReport((told if told is not None else []).append, lambda: None, lambda code: None)
    return Courier(outbox, lambda: archive, report, BackOff(2.0, 300.0, lambda: 1.0), clock)


def test_objects_are_sent_in_their_order_and_struck_off(spool: Spool) -> None:
    outbox, archive, told = Outbox(spool), MadeUpArchive(), Told()
    objects = queue(spool, outbox, "first")

    courier_of(outbox, archive, Clock(), told).send_due()

    assert list(archive.there) == [item.sop_uid for item in objects]
    (delivery,) = outbox.all()
    assert delivery.is_done
    assert delivery.left == ()
    assert told == ["series first: the archive has all 3 objects"]


def test_after_a_break_only_the_rest_is_sent_even_by_another_process(spool: Spool) -> None:
    outbox, archive = Outbox(spool), MadeUpArchive(breaks_after=1)
    queue(spool, outbox, "first")
    courier_of(outbox, archive, Clock()).send_due()
    assert len(archive.there) == 1
    archive.breaks_after = -1

    courier_of(Outbox(spool), archive, Clock()).send_due()

    assert list(archive.there.values()) == [1, 1, 1]


def test_waits_grow_up_to_a_limit_and_survive_a_restart(spool: Spool) -> None:
    archive, clock = MadeUpArchive(refused={"never"}), Clock()
    outbox = Outbox(spool)
    objects = queue(spool, outbox, "first")
    archive.refused = {objects[0].sop_uid}
    courier = courier_of(outbox, archive, clock)
    moments = []
    for _ in range(400):
        before = archive.tries
        courier.send_due()
        if archive.tries > before:
            moments.append(clock.now)
        clock.now += 2.0
    waits = [later - earlier for earlier, later in zip(moments, moments[1:], strict=False)]
    assert waits == [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]

    told = Told()
    courier_of(Outbox(spool), archive, clock, told).send_due()
    assert "Next try in 300 s" in told[0], "the number of tries is remembered"


def test_archive_that_is_gone_is_asked_once_for_all_deliveries(spool: Spool) -> None:
    outbox, archive, clock, told = Outbox(spool), MadeUpArchive(errors=[GONE, GONE]), Clock(), Told()
    for key in ("first", "second", "third"):
        queue(spool, outbox, key)
    courier = courier_of(outbox, archive, clock, told)
    courier.send_due()
    courier.send_due()
    assert archive.tries == 1
    assert told == ["UCSEG-E170 nobody there. Next try in 2 s; 3 series wait for it."]
    assert not courier.is_archive_reachable

    clock.now += 2.0
    courier.send_due()
    assert archive.tries == 2, "once more, in vain"
    clock.now += 4.0
    courier.send_due()

    assert courier.is_archive_reachable
    assert len(archive.there) == 9
    assert set(archive.there.values()) == {1}
    assert "the archive answers again" in told


def test_delivery_that_is_refused_does_not_stop_the_others(spool: Spool) -> None:
    outbox, clock, told = Outbox(spool), Clock(), Told()
    archive = MadeUpArchive(errors=[ArchiveRefusedError("not for you.", hint="Ask.")])
    queue(spool, outbox, "first")
    queue(spool, outbox, "second")
    courier = courier_of(outbox, archive, clock, told)

    courier.send_due()

    assert [item.key for item in outbox.all() if item.is_done] == ["second"]
    assert courier.reasons == {"first": "not for you. Ask."}
    clock.now += 2.0
    courier.send_due()
    assert all(item.is_done for item in outbox.all())
    assert not courier.reasons


def test_single_object_that_is_refused_is_sent_again_alone(spool: Spool) -> None:
    outbox, archive, clock = Outbox(spool), MadeUpArchive(), Clock()
    objects = queue(spool, outbox, "first")
    archive.refused = {objects[1].sop_uid}
    courier = courier_of(outbox, archive, clock)
    courier.send_due()
    archive.refused.clear()
    clock.now += 2.0

    courier.send_due()

    assert archive.there == {item.sop_uid: 1 for item in objects}


def test_results_that_are_gone_are_told_and_wait(spool: Spool) -> None:
    outbox, archive, told = Outbox(spool), MadeUpArchive(), Told()
    queue(spool, outbox, "first")
    spool.remove_results("study/first")
    courier_of(outbox, archive, Clock(), told).send_due()

    assert told == ["series first: UCSEG-E150 the results cannot be read. Next try in 2 s."]


def test_outbox_that_cannot_be_written_is_a_wait_and_no_end(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox, archive, told = Outbox(spool), MadeUpArchive(), Told()
    queue(spool, outbox, "first")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, courier_of(outbox, archive, Clock(), told) as courier:
        patched.setattr("ucseg_runtime.pacs.outbox.replace_checked", full)
        while not told:
            time.sleep(0.01)
        courier.require_alive()
        assert courier.is_alive

    assert "the outbox cannot be written: No space left on device" in told[0]


def test_defect_in_the_courier_is_raised_to_who_looks_after_it(spool: Spool) -> None:
    outbox = Outbox(spool)
    queue(spool, outbox, "first")

    def opening() -> MadeUpArchive:
        raise AssertionError("a defect")

    courier = Courier(outbox, opening, CourierReport(lambda line: None, lambda: None, lambda code: None))
    with courier:
        while courier.is_alive:
            time.sleep(0.01)
        with pytest.raises(AssertionError, match="a defect"):
            courier.require_alive()


def test_same_results_again_keep_what_was_sent_and_others_do_not(spool: Spool) -> None:
    outbox, archive = Outbox(spool), MadeUpArchive(breaks_after=2)
    objects = queue(spool, outbox, "first")
    courier_of(outbox, archive, Clock()).send_due()

    outbox.add("first", spool.results / "study" / "first", objects)
    assert len(outbox.all()[0].left) == 1

    outbox.add("first", spool.results / "study" / "first", objects[:2])
    assert len(outbox.all()[0].left) == 2


def test_damaged_file_of_the_outbox_is_left_out(spool: Spool) -> None:
    queue(spool, Outbox(spool), "first")
    (spool.outbox / "second.json").write_text("{")
    (spool.outbox / ".third.json-draft").write_text("")

    assert [item.key for item in Outbox(spool).all()] == ["first"]
    assert not list(spool.outbox.glob(".*"))
