"""What a cloud is to Ray's autoscaler: nodes that come and go, as processes of this machine."""

# pyright: standard
# Ray's own types are incomplete.

import os
import subprocess
from pathlib import Path
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import NODE_KIND_HEAD, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from tests.cluster.ray_cluster import kill_family

_HEAD = "head"


class LocalNodes(NodeProvider):
    """Ray's own `fake_multinode` cannot start nodes that have `memory`."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        head = {TAG_RAY_NODE_KIND: NODE_KIND_HEAD, TAG_RAY_USER_NODE_TYPE: _HEAD}
        self._tags: dict[str, dict[str, str]] = {_HEAD: head}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> None:
        for _ in range(count):
            address = f"127.0.0.{len(self._tags) + 1}"  # the autoscaler tells nodes apart by it
            of_ray = {
                "RAY_CLOUD_INSTANCE_ID": address,
                "RAY_NODE_TYPE_NAME": tags[TAG_RAY_USER_NODE_TYPE],
            }
            with Path(node_config["log"]).open("ab") as log:
                self._processes[address] = subprocess.Popen(
                    [*node_config["command"], f"--node-ip-address={address}"],
                    env=os.environ | node_config["environment"] | of_ray,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            self._tags[address] = dict(tags)

    def terminate_node(self, node_id: str) -> None:
        process = self._processes[node_id]
        kill_family(process.pid)
        process.wait()

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        return [
            node_id
            for node_id, tags in list(self._tags.items())
            if self.is_running(node_id) and tag_filters.items() <= tags.items()
        ]

    def is_running(self, node_id: str) -> bool:
        return node_id == _HEAD or self._processes[node_id].poll() is None

    def is_terminated(self, node_id: str) -> bool:
        return not self.is_running(node_id)

    def node_tags(self, node_id: str) -> dict[str, str]:
        return self._tags[node_id]

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        self._tags[node_id] |= tags

    def internal_ip(self, node_id: str) -> str:
        return node_id

    def external_ip(self, node_id: str) -> str:
        return node_id
