"""The Merkle root over an auction's views. Bookings from before have none, and keep the hashes that they have."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column. It stays null in the bookings from before."""
    op.add_column("bookings", sa.Column("views", sa.Text))
