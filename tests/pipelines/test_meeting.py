"""What the meeting of the ranks keeps; that it meets is shown wherever a run is tested."""

import asyncio
from contextlib import suppress
from typing import Any

from pipelines.run.meeting import Meeting


def test_parts_of_dead_attempts_are_not_kept() -> None:
    meeting: Any = Meeting.__ray_metadata__.modified_class()  # type: ignore[attr-defined]
    refs: Any = ("stage", "part")  # no result is asked for

    async def hand_in(*keys: str) -> None:
        waiting = [asyncio.create_task(meeting.hand_in(key, 0, 2, refs, {})) for key in keys]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    asyncio.run(hand_in("first/0/labels", "first/0/evaluation"))
    assert set(meeting.gatherings) == {"first/0/labels", "first/0/evaluation"}
    asyncio.run(hand_in("second/0/labels"))
    assert set(meeting.gatherings) == {"second/0/labels"}
    asyncio.run(hand_in("first/1/labels"))  # late, from a rank that is cut off
    assert set(meeting.gatherings) == {"second/0/labels", "first/1/labels"}
