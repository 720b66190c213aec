"""Who leaves: every case, without a model."""

from collections.abc import Sequence
from random import Random

from hypothesis import example, given
from hypothesis import strategies as st

from kawai_tools.runners.eviction import Room, Seat, Verdict, expired, giving_way, make_room

MOMENTS = st.floats(0, 100, allow_nan=False)


@st.composite
def _seats(draw: st.DrawFn) -> list[Seat]:
    """A few models in any state."""
    ids = draw(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=6))
    return [
        Seat(
            each,
            draw(st.integers(0, 50)),
            draw(st.sampled_from((0, 0, 0, 1, 3))),
            moving,
            draw(MOMENTS),
            draw(st.none() | MOMENTS),
            draw(st.booleans()) if moving else False,
        )
        for each in ids
        for moving in [draw(st.sampled_from((False, False, False, True)))]
    ]


NEEDS, BUDGETS, COUNTS = st.integers(0, 80), st.integers(0, 150), st.integers(1, 6)


def _seat(name: str, memory: int = 10, *, leases: int = 0, used: float = 0.0, pinned: bool = False) -> Seat:
    return Seat(name, memory, leases, moving=False, last_used=used, expires_at=None if pinned else used + 300)


def _fits(staying: Sequence[Seat], need: int, budget: int, most: int) -> bool:
    return sum(seat.memory for seat in staying) + need <= budget and len(staying) < most


def _without(seats: Sequence[Seat], *names: str) -> list[Seat]:
    return [seat for seat in seats if seat.id not in names]


@given(_seats(), NEEDS, BUDGETS, COUNTS)
def test_room_that_is_promised_is_there(seats: list[Seat], need: int, budget: int, most: int) -> None:
    room, leaving = make_room(seats, need, budget, most)
    assert (room is Room.NOW) == _fits(_without(seats, *leaving), need, budget, most)


@given(_seats(), NEEDS, BUDGETS, COUNTS)
def test_only_idle_models_that_are_not_pinned_leave(
    seats: list[Seat], need: int, budget: int, most: int
) -> None:
    leaving = make_room(seats, need, budget, most).leaving
    known = {seat.id: seat for seat in seats}
    assert len(set(leaving)) == len(leaving)
    for each in leaving:
        seat = known[each]
        assert (seat.leases, seat.moving) == (0, False)
        assert seat.expires_at is not None


@given(_seats(), NEEDS, BUDGETS, COUNTS)
def test_no_model_leaves_in_vain(seats: list[Seat], need: int, budget: int, most: int) -> None:
    leaving = make_room(seats, need, budget, most).leaving
    for each in leaving:
        others = [name for name in leaving if name != each]
        assert not _fits(_without(seats, *others), need, budget, most)


@given(_seats(), NEEDS, BUDGETS, COUNTS)
def test_they_leave_by_their_last_use(seats: list[Seat], need: int, budget: int, most: int) -> None:
    leaving = make_room(seats, need, budget, most).leaving
    used = {seat.id: seat.last_used for seat in seats}
    assert [used[each] for each in leaving] == sorted(used[each] for each in leaving)


@given(_seats(), NEEDS, BUDGETS, COUNTS)
def test_among_models_of_one_size_the_least_recently_used_leave(
    seats: list[Seat], need: int, budget: int, most: int
) -> None:
    same = [seat._replace(memory=10) for seat in seats]
    leaving = make_room(same, need, budget, most).leaving
    used = {seat.id: seat.last_used for seat in same}
    staying = [seat.last_used for seat in same if seat.may_leave and seat.id not in leaving]
    assert all(used[each] <= least for each in leaving for least in staying)


@given(_seats(), NEEDS, BUDGETS, COUNTS)
def test_later_and_never_tell_whether_waiting_helps(
    seats: list[Seat], need: int, budget: int, most: int
) -> None:
    verdict = make_room(seats, need, budget, most)
    pinned = [seat for seat in seats if seat.expires_at is None and not seat.leaving]
    assert (verdict.room is Room.NEVER) == (not _fits(pinned, need, budget, most))
    if verdict.room is Room.LATER:
        assert not _fits([seat for seat in seats if not seat.may_leave], need, budget, most)
    if verdict.room is not Room.NOW:
        assert verdict.leaving == ()


@given(_seats(), NEEDS, BUDGETS, COUNTS, st.randoms())
def test_the_order_of_the_seats_is_of_no_account(
    seats: list[Seat], need: int, budget: int, most: int, chance: Random
) -> None:
    apart = [seat._replace(last_used=float(number)) for number, seat in enumerate(seats)]
    mixed = list(apart)
    chance.shuffle(mixed)
    assert make_room(mixed, need, budget, most) == make_room(apart, need, budget, most)


@given(_seats(), NEEDS, BUDGETS, COUNTS)
def test_once_they_have_left_nobody_else_must(seats: list[Seat], need: int, budget: int, most: int) -> None:
    room, leaving = make_room(seats, need, budget, most)
    if room is Room.NOW:
        assert make_room(_without(seats, *leaving), need, budget, most) == Verdict(Room.NOW)


@given(_seats(), MOMENTS)
@example([_seat("a", used=0.0)], 300.0)
def test_what_expires_is_idle_and_its_time_is_over(seats: list[Seat], now: float) -> None:
    assert expired(seats, now) == [
        seat.id
        for seat in seats
        if seat.expires_at is not None and seat.expires_at <= now and not seat.leases and not seat.moving
    ]


def test_a_pinned_model_never_expires() -> None:
    assert expired([_seat("a", pinned=True)], 1e9) == []


def test_nobody_leaves_where_there_is_room() -> None:
    assert make_room([_seat("a"), _seat("b")], 10, 30, 3) == Verdict(Room.NOW)


def test_the_least_recently_used_leaves_for_the_number() -> None:
    seats = [_seat("a", used=5), _seat("b", used=3), _seat("c", used=4)]
    assert make_room(seats, 10, 1000, 3) == Verdict(Room.NOW, ("b",))


def test_one_large_model_leaves_instead_of_many_small_ones() -> None:
    seats = [_seat("small", 10, used=1), _seat("tiny", 5, used=2), _seat("large", 50, used=3)]
    assert make_room(seats, 50, 65, 9) == Verdict(Room.NOW, ("large",))


def test_several_leave_if_they_must() -> None:
    seats = [_seat("a", 10, used=1), _seat("b", 10, used=2), _seat("c", 10, used=3)]
    assert make_room(seats, 20, 30, 9) == Verdict(Room.NOW, ("a", "b"))


def test_busy_models_are_waited_for_and_pinned_ones_are_not() -> None:
    assert make_room([_seat("a", leases=1)], 10, 10, 9) == Verdict(Room.LATER)
    assert make_room([_seat("a", pinned=True)], 10, 10, 9) == Verdict(Room.NEVER)
    assert make_room([], 11, 10, 9) == Verdict(Room.NEVER)


def test_idle_models_stay_where_their_leaving_would_not_do() -> None:
    seats = [_seat("idle", 10), _seat("busy", 10, leases=1)]
    assert make_room(seats, 15, 20, 9) == Verdict(Room.LATER)


@given(_seats(), NEEDS, BUDGETS, COUNTS)
def test_those_that_make_way_leave_room_and_are_no_more_than_must(
    seats: list[Seat], need: int, budget: int, most: int
) -> None:
    chosen = giving_way(seats, need, budget, most)
    known = {seat.id: seat for seat in seats}
    assert all(known[each].expires_at is not None and not known[each].moving for each in chosen)
    if chosen:
        assert _fits(_without(seats, *chosen), need, budget, most)
        for each in chosen:
            assert not _fits(_without(seats, *(name for name in chosen if name != each)), need, budget, most)


def test_the_least_busy_makes_way() -> None:
    seats = [_seat("a", leases=3), _seat("b", leases=1), _seat("c", leases=2)]
    assert giving_way(seats, 10, 100, 3) == ("b",)
    assert giving_way(seats, 20, 30, 3) == ("b", "c")
