"""One Ray for all integration tests."""

from __future__ import annotations

from own_ray import ray_cluster as ray_cluster
