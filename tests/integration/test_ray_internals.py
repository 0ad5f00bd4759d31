"""The functions of `ray_internals` that need a cluster."""

from __future__ import annotations

import time

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from imf_ray import ray_internals

TIMEOUT_S = 30.0


def test_the_log_folder_and_the_dashboard_are_found(ray_cluster: None) -> None:
    assert list(ray_internals.node_log_dir().glob("raylet*"))
    url = ray_internals.dashboard_url()
    assert url is None or ":" in url


def test_the_creator_of_a_placement_group_is_known(ray_cluster: None) -> None:
    @ray.remote(num_cpus=0)
    class Creator:
        def create(self) -> str:
            group = placement_group([{"CPU": 0.01}])
            ray.get(group.ready())
            return group.id.hex()

    def find(group_id: str) -> ray_internals.PlacementGroupInfo:
        (info,) = [g for g in ray_internals.placement_groups() if g.id.hex() == group_id]
        return info

    creator = Creator.remote()  # type: ignore[attr-defined]
    of_actor = find(ray.get(creator.create.remote()))
    group = placement_group([{"CPU": 0.01}])
    of_driver = find(group.id.hex())
    assert of_actor.creator_actor and not of_actor.creator_actor_dead
    assert not of_driver.creator_actor and not of_driver.removed
    job_id = ray.get_runtime_context().get_job_id()
    assert of_actor.creator_job_id == of_driver.creator_job_id == job_id
    remove_placement_group(group)
    ray.kill(creator)
    until = time.monotonic() + TIMEOUT_S
    while not find(of_actor.id.hex()).creator_actor_dead and time.monotonic() < until:
        time.sleep(0.1)
    assert find(of_actor.id.hex()).creator_actor_dead
    assert find(group.id.hex()).removed
    remove_placement_group(PlacementGroup(of_actor.id))
