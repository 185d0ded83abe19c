"""One log in one row, events with a mark, and a trigger that does not lose what it cannot place.

- ``legacy_poll_log`` has at most one row, by the schema. Where there are two (a data-only dump was loaded beside the
  row that an upgrade had made), they become one, with another identity, since nobody can say which cursors are right.
- ``legacy_poll_event.mark`` tells a position that was given again, after a restore, from the one that was there.
- ``legacy_poll_apart`` takes the end of the log while another session has the end of ``legacy_poll_event`` locked,
  which happens on MySQL and MariaDB only.
- On SQLite the trigger leaves a row in the outbox when the log cannot take it, and an id counts as known only while it
  is retained.

Code of 1_0001 works with these tables: what it inserts has no mark, and cursors behind it are checked by the id.

Revision ID: 1_0002
"""

import uuid

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import mysql

revision = "1_0002"
down_revision = "1_0001"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
LONG = sa.Text().with_variant(mysql.LONGTEXT(), "mysql").with_variant(mysql.LONGTEXT(), "mariadb")
# What changes in the trigger of 1_0001.
TRIGGER_CHANGES = (
    (
        "WHEN NOT EXISTS (SELECT 1 FROM legacy_poll_outbox WHERE id <> NEW.id)\n",
        "WHEN NOT EXISTS (SELECT 1 FROM legacy_poll_outbox WHERE id <> NEW.id)\n"
        # No row, one that says nothing, or events beyond the head: what the trigger cannot place waits.
        "  AND EXISTS (SELECT 1 FROM legacy_poll_log WHERE typeof(head) = 'integer' AND typeof(oldest) = 'integer'\n"
        "    AND oldest BETWEEN 1 AND head + 1 AND head < 4611686018427387903)\n"
        "  AND NOT EXISTS (SELECT 1 FROM legacy_poll_event WHERE position > (SELECT head FROM legacy_poll_log))\n",
    ),
    (
        "(position, id, channel, type, data, published_at)\n",
        "(position, id, channel, type, data, published_at, mark)\n",
    ),
    (
        "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')\n  FROM",
        "strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), lower(hex(randomblob(4)))\n  FROM",
    ),
    (
        "WHERE id = NEW.event_id);",
        "WHERE id = NEW.event_id AND position >= legacy_poll_log.oldest);",
    ),
)


def first():
    """The module of 1_0001."""
    return context.script.get_revision(down_revision).module


def trigger():
    text = first().TRIGGER
    for before, after in TRIGGER_CHANGES:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text


def replace_trigger(text):
    if op.get_context().dialect.name == "sqlite":
        op.execute("DROP TRIGGER IF EXISTS legacy_poll_sequence")
        op.execute(sa.DDL(text.replace("%", "%%")))


def make_one_row():
    """Puts the rows of the log together, if there are several."""
    connection = op.get_bind()
    log = sa.table("legacy_poll_log", sa.column("log_id"), sa.column("head"), sa.column("oldest"))
    position = sa.column("position")
    rows = connection.execute(sa.select(log.c.log_id, log.c.head, log.c.oldest)).all()
    if len(rows) < 2:
        return
    last = connection.execute(
        sa.select(sa.func.max(position)).select_from(sa.table("legacy_poll_event"))
    ).scalar()
    connection.execute(sa.delete(log))
    connection.execute(
        sa.insert(log).values(
            log_id=str(uuid.uuid4()),
            head=max([row[1] for row in rows] + [last or 0]),
            oldest=min(row[2] for row in rows),
        )
    )


def upgrade():
    missing = first().missing
    first().settle_version()
    if not context.is_offline_mode():
        make_one_row()
    if missing("column", "legacy_poll_log", "one_row"):
        # In SQL, since alembic would add the rule apart from the column, which SQLite cannot.
        op.execute(
            "ALTER TABLE legacy_poll_log ADD COLUMN one_row SMALLINT DEFAULT 1 NOT NULL CHECK (one_row = 1)"
        )
    first().create_index("legacy_poll_log_one_row", "legacy_poll_log", ["one_row"], unique=True)
    if missing("column", "legacy_poll_event", "mark"):
        op.add_column("legacy_poll_event", sa.Column("mark", sa.String(8)))
    if missing("column", "legacy_poll_set_aside", "cut_from"):
        op.add_column("legacy_poll_set_aside", sa.Column("cut_from", sa.BigInteger))
    first().create_table(
        "legacy_poll_apart",
        sa.Column("position", BIG, primary_key=True, autoincrement=False),
        sa.Column("id", sa.String(100), nullable=False),
        sa.Column("channel", sa.String(200), nullable=False),
        sa.Column("type", sa.String(200), nullable=False),
        sa.Column("data", LONG, nullable=False),
        sa.Column("published_at", sa.String(24), nullable=False),
        sa.Column("mark", sa.String(8)),
    )
    first().create_index("legacy_poll_apart_channel", "legacy_poll_apart", ["channel", "position"])
    first().create_index("legacy_poll_apart_id", "legacy_poll_apart", ["id"])
    replace_trigger(trigger())


def downgrade():
    if op.get_context().dialect.name == "sqlite":
        op.execute("DROP TRIGGER IF EXISTS legacy_poll_sequence")
    op.execute(
        "INSERT INTO legacy_poll_event (position, id, channel, type, data, published_at)"
        " SELECT position, id, channel, type, data, published_at FROM legacy_poll_apart"
    )
    op.drop_table("legacy_poll_apart")
    op.drop_index("legacy_poll_log_one_row", "legacy_poll_log")
    for table, column in (
        ("legacy_poll_log", "one_row"),
        ("legacy_poll_event", "mark"),
        ("legacy_poll_set_aside", "cut_from"),
    ):
        with op.batch_alter_table(
            table, table_kwargs={"sqlite_autoincrement": column == "cut_from"}
        ) as batch:
            batch.drop_column(column)
    replace_trigger(first().TRIGGER)
