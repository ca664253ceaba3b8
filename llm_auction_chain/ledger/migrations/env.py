"""Alembic runs this file: it migrates on the ledger's connection, within the ledger's transaction."""

from alembic import context

from llm_auction_chain.ledger.tables import METADATA, VERSIONS

if hasattr(context, "config"):  # not where the file is only imported, as by a collector of doctests
    connection = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=METADATA, version_table=VERSIONS)
    with context.begin_transaction():
        context.run_migrations()
