"""A Ray driver that holds a placement group and an actor beside it until it is killed; its pid says that it does."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import ray
from ray.util.placement_group import placement_group


class Idle:
    """Does nothing."""

    def is_there(self) -> bool:
        return True


ray.init()
group = placement_group([{"CPU": 1}, {"CPU": 1}])
ray.get(group.ready())
actor = ray.remote(Idle).options(num_cpus=0.5).remote()
ray.get(actor.is_there.remote())
part = Path(sys.argv[1]).with_suffix(".part")
part.write_text(str(os.getpid()))
part.rename(sys.argv[1])
threading.Event().wait()
