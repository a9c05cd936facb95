"""How many steps of guesses are made."""

from __future__ import annotations

from edge.engine.speculative.reach import Reach


def made_for(reach: Reach, enough: int, passes: int) -> list[int]:
    """Steps of so many passes, of which down to `enough` are chosen."""
    found = []
    for _ in range(passes):
        made = reach.depth
        found.append(made)
        reach.learn(min(made, enough), made)
    return found


def test_guesses_go_as_deep_as_they_are_chosen():
    reach = Reach()
    steps = made_for(reach, 11, 60)
    assert 11 in steps[:8] and sum(steps[10:]) < 1.1 * 11 * 50
    steps = made_for(reach, 3, 60)
    assert 3 in steps[:10] and sum(steps[10:]) < 1.2 * 3 * 50
    assert made_for(reach, 9, 40)[-1] >= 9


def test_one_step_is_always_made():
    assert made_for(Reach(), 0, 30)[-1] == 1
