"""The two-node cluster that ``tests/slurm/cluster up`` starts."""

from __future__ import annotations

import os

import pytest
from lab import OWN, Cluster, called


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if OWN.exists():
        os.environ.setdefault("SLURM_CONF", str(OWN))
    nodes = called("sinfo", "--noheader", "--Node", "--states=idle,mixed,allocated")
    assert len(nodes.splitlines()) >= 2, "start it with tests/slurm/cluster up"
    return Cluster(tmp_path_factory.mktemp("jobs"))
