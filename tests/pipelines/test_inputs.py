"""Images are looked at by tasks, which do not wait for ever."""

from pathlib import Path

import pytest
from ray.util.placement_group import placement_group, remove_placement_group

from pipelines.images import look
from pipelines.images.inputs import open_store, readable
from reid_core.data.datasets import scan


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_images_for_which_nothing_has_room(
    local_ray: None, small_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = scan(small_set)
    store = open_store(found.root, found.fingerprint, str(tmp_path))
    held = placement_group([{"CPU": 4}])
    assert held.wait(60)
    monkeypatch.setattr(look, "NO_PROGRESS_S", 2)
    with pytest.raises(TimeoutError, match=rf"for 2 s: 1 tasks of 0.5 CPUs wait .* {found.root}"):
        readable(found.images, store, look.look_in_tasks)
    remove_placement_group(held)
    monkeypatch.undo()
    images, unread = readable(found.images, store, look.look_in_tasks)
    assert len(images) == len(found.images)
    assert not unread
