"""A real cluster of several nodes on this machine, and a real PostgreSQL server for the ledger."""

import uuid

import pytest
import ray
from ray.cluster_utils import Cluster
from sqlalchemy import create_engine, make_url, text

from tests.ledger.servers import started

NODE = {"num_cpus": 2, "object_store_memory": 80 * 2**20}
DETECTOR = {"health_check_period_ms": 1000}  # a dead node is noticed after five of them


@pytest.fixture(scope="session")
def cluster():
    """Nodes that claim more logical CPUs than there are: actors that wait for a model take hardly any time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # else what else runs on this machine comes first, and actors starve
        # no row may be computed on the head, which stays
        head = {**NODE, "num_cpus": 0, "include_dashboard": False, "_system_config": DETECTOR}
        nodes = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            nodes.add_node(**NODE)
        ray.init(address=nodes.address, log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            yield nodes
        finally:
            ray.shutdown()
            nodes.shutdown()


@pytest.fixture(scope="session")
def server():
    with started() as running:
        yield make_url(running.get_uri()).set(drivername="postgresql+psycopg")


@pytest.fixture
def url(server):
    """A database that nobody has opened."""
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    name = f"ledger_{uuid.uuid4().hex}"
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        yield server.set(database=name).render_as_string(hide_password=False)
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()
