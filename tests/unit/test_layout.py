"""Tests mirror the package: who looks for the tests of a module finds them under its name."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "llm_auction_chain"

# Modules without a test file of their name, and where their promises are tested: each needs the whole of its package.
ELSEWHERE = {
    "interfaces/ray_data.py": "tests/ray/test_ray_data.py",
    "ledger/arguments.py": "tests/ledger/test_operations.py",
    "ledger/chain.py": "tests/ledger/test_audit.py",
    "ledger/records.py": "tests/ledger/test_queries.py",
    "ledger/statements.py": "tests/ledger/test_transaction.py",
    "ledger/tables.py": "tests/ledger/test_database.py",
    "models/local/classifier.py": "tests/unit/rewards/test_reward_model.py",
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
