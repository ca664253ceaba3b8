"""The ledger's migrations: Alembic runs them at opening, and in `llm-auction ledger migrate`."""
