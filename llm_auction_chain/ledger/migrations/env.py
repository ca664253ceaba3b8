"""Runs the ledger's migrations on the connection that the ledger hands over, within its transaction."""

from alembic import context

from llm_auction_chain.ledger.tables import METADATA, VERSIONS

if hasattr(context, "config"):  # Alembic runs it; whoever only imports it, such as a collector of tests, does not
    connection = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=METADATA, version_table=VERSIONS)
    with context.begin_transaction():
        context.run_migrations()
