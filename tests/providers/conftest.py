import pytest

from tests.providers.servers import MODELS, serve


def pytest_configure(config):
    """Pass over what the providers' packages warn of among themselves, and sockets that their clients leave open."""
    for kind in ("ResourceWarning", "DeprecationWarning", "pytest.PytestUnraisableExceptionWarning"):
        config.addinivalue_line("filterwarnings", f"ignore::{kind}")


@pytest.fixture(autouse=True)
def no_tracing(monkeypatch):
    monkeypatch.setenv("LANGSMITH_TRACING", "false")


@pytest.fixture
def server():
    with serve() as served:
        yield served


@pytest.fixture(params=MODELS)
def provider(request):
    """The name of a provider."""
    return request.param
