"""Tests mirror the package: who looks for the tests of a module finds them under its name."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "llm_auction_chain"

# Modules without a test file of their name, and the folder or file that tests their promises.
ELSEWHERE = {
    "auction/admission.py": "tests/unit/auction",
    "auction/billing.py": "tests/unit/auction",
    "auction/delivery.py": "tests/unit/auction",
    "auction/events.py": "tests/unit/auction",
    "auction/explanation.py": "tests/unit/auction",
    "auction/outcome.py": "tests/unit/auction",
    "auction/result.py": "tests/unit/auction",
    "auction/settings.py": "tests/unit/auction",
    "auction/tau_sweep.py": "tests/unit/auction",
    "interfaces/chat_model.py": "tests/unit/interfaces",
    "interfaces/runnable.py": "tests/unit/interfaces",
    "ledger/arguments.py": "tests/ledger",
    "ledger/chain.py": "tests/ledger",
    "ledger/ledger.py": "tests/ledger",
    "ledger/operations.py": "tests/ledger",
    "ledger/queries.py": "tests/ledger",
    "ledger/records.py": "tests/ledger",
    "ledger/tables.py": "tests/ledger",
    "ledger/transaction.py": "tests/ledger",
    "models/local/classifier.py": "tests/unit/rewards/test_reward_model.py",
    "models/vllm/client.py": "tests/unit/models",
    "models/vllm/responses.py": "tests/unit/models",
    "rewards/base.py": "tests/unit/rewards",
    "rewards/click.py": "tests/unit/rewards",
    "rewards/webhook_client.py": "tests/unit/rewards",
    "threads.py": "tests/unit",
    "validators.py": "tests/unit",
}


def homes(module):
    """Return the files that may test a module: in tests/unit, or in tests/ledger where it needs a ledger."""
    folder, name = module.relative_to(PACKAGE).parent, f"test_{module.stem}.py"
    if folder.parts[:1] == ("ledger",):
        return [Path("tests", folder, name)]
    return [Path("tests/unit", folder, name), Path("tests/ledger", folder, name)]


def modules():
    """Return the modules that have tests of their own: not what only gathers names, starts a command or migrates."""
    return [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name not in ("__init__.py", "__main__.py") and "migrations" not in path.parts
    ]


def test_every_module_has_a_test_file_of_its_name():
    missing = {
        str(path.relative_to(PACKAGE)) for path in modules() if not any((ROOT / home).exists() for home in homes(path))
    }
    assert missing - ELSEWHERE.keys() == set()


def test_modules_tested_elsewhere_name_a_file_that_exists():
    assert [test for test in ELSEWHERE.values() if not (ROOT / test).exists()] == []
